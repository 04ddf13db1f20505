"""One model of the zoo on disk: a folder with the file, its data, and what a measurement has to know.

    NAME/model.onnx         without traces of its source, so that every tool begins with the same bytes
    NAME/calibration.npz    inputs by name, [sample, ...] each, `labels` where a compiler may use them
    NAME/evaluation.npz     the same of other samples
    NAME/task.npz           what a score of the answers needs: `labels`, `scores` or `text`
    NAME/facts.json         `Facts`

Imports numpy alone: the process that measures and the environments of other tools read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Arrays = Mapping[str, np.ndarray]
Meaning = Literal["logits", "probabilities", "values"]
Task = Literal["", "classes", "tokens", "pairs", "lines", "threshold"]
LABELS = "labels"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a measurement has to know of a model.

    Attributes:
        family: `cnn`, `ocr`, `text`, `speech` or `bytes`; static integers are tried on the first two.
        output: The output that is compared.
        meaning: What its last axis holds; distributions are compared by KL, values by half the relative squared error.
        task: What is scored: the classes of samples, the next tokens, similarities of pairs of sentences, lines of
            text, or the share of values on the same side of `threshold`.
        batch: Samples run at once.
        sample_axes: Where an input has its samples, if not in its first axis; -1 if nowhere.
        threshold: Of the task `threshold`.
        source: Where the model comes from.
    """

    family: str
    output: str
    meaning: Meaning
    source: str
    task: Task = ""
    batch: int = 16
    sample_axes: Mapping[str, int] | None = None
    threshold: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model's folder."""

    folder: Path
    facts: Facts

    @property
    def name(self) -> str:
        """Of the model."""
        return self.folder.name

    @property
    def model(self) -> Path:
        """The file as it was."""
        return self.folder / "model.onnx"

    def arrays(self, part: str, count: int | None = None) -> dict[str, np.ndarray]:
        """`calibration`, `evaluation` or `task`: the first samples of all arrays; empty if there is no such file."""
        path = self.folder / f"{part}.npz"
        if not path.exists():
            return {}
        with np.load(path) as content:
            return {name: content[name][:count] if content[name].ndim else content[name] for name in content.files}


def read_entry(folder: Path) -> Entry:
    """The model in this folder."""
    return Entry(folder=folder, facts=Facts(**json.loads((folder / "facts.json").read_text())))


def write_entry(folder: Path, facts: Facts, **parts: Arrays) -> None:
    """Facts and data of a model."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, arrays in parts.items():
        np.savez(folder / f"{part}.npz", **arrays)  # pyright: ignore[reportArgumentType]  (a name is no option)
    (folder / "facts.json").write_text(json.dumps(asdict(facts), indent=1) + "\n")


def samples(arrays: Arrays) -> int:
    """How many there are."""
    return max(len(values) for values in arrays.values() if values.ndim)


def feeds(facts: Facts, arrays: Arrays, start: int, stop: int) -> dict[str, np.ndarray]:
    """These samples as the model takes them: each input's samples in the axis where the file has them."""
    found: dict[str, np.ndarray] = {}
    for name, values in arrays.items():
        axis = (facts.sample_axes or {}).get(name, 0)
        if name != LABELS:
            found[name] = values if axis == -1 else np.ascontiguousarray(np.moveaxis(values[start:stop], 0, axis))
    return found


def batches(facts: Facts, arrays: Arrays, size: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """All samples, some at a time."""
    size = size or facts.batch
    for start in range(0, samples(arrays), size):
        yield feeds(facts, arrays, start, start + size)
