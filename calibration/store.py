"""Guidance on disk: one file of quadratic terms per site, and the kept sequence gradients as int8 rows.

guidance.json             what is here: sites, facts
sites/<number>.safetensors    the terms of one site
gradients/<number>.codes      int8 [sequence, out, in], each row with its own scale
gradients/<number>.scales     float32 [sequence, out]
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from guidedq.artifacts.guidance import AbstractGuidance, AbstractSequenceGradients, QuadraticTerm, SiteGuidance
from guidedq.errors import ArtifactError
from guidedq.files import write_tensors, write_text

CODE_LIMIT = 127.0
"""int8, symmetric: rounding adds about half a percent of noise to a projection, far below its sampling noise."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GradientFiles(AbstractSequenceGradients):
    """Per-sequence weight gradients of one site: a file of codes per use of the weight, whose sum is the gradient.

    Attributes:
        paths: Of the codes; the scales lie beside them.
        shape: `(sequences, out, in)`.
    """

    paths: tuple[Path, ...]
    shape: tuple[int, int, int]

    @property
    def sequences(self) -> int:
        """How many sequences were kept."""
        return self.shape[0]

    def write(self, use: int, sequence: int, start: int, gradient: Float[Tensor, "n in"]) -> None:
        """Put rows `start` and following of one use's gradient in their place; writing them again changes nothing."""
        scales = gradient.abs().amax(1) / CODE_LIMIT
        codes = torch.round(gradient / torch.where(scales > 0, scales, 1.0)[:, None]).to(torch.int8)
        _, rows, columns = self.shape
        place = sequence * rows + start
        whole = self.sequences * rows
        _write_at(self.paths[use], place * columns, codes.numpy().tobytes(), whole * columns)
        _write_at(self.paths[use].with_suffix(".scales"), place * 4, scales.numpy().tobytes(), whole * 4)

    def rows(self, start: int, stop: int) -> Float[Tensor, "sequence out in"]:
        """The gradients of rows `start` to `stop - 1` in float32."""
        total = self._use(self.paths[0], start, stop)
        for path in self.paths[1:]:
            total += self._use(path, start, stop)
        return total

    def _use(self, path: Path, start: int, stop: int) -> Float[Tensor, "sequence out in"]:
        sequences, rows, columns = self.shape
        scales = torch.from_numpy(np.fromfile(path.with_suffix(".scales"), dtype=np.float32)).view(sequences, rows)
        values = torch.empty(sequences, stop - start, columns)
        with path.open("rb") as file:
            for sequence in range(sequences):
                file.seek((sequence * rows + start) * columns)
                codes = torch.frombuffer(bytearray(file.read((stop - start) * columns)), dtype=torch.int8)
                torch.mul(codes.view(-1, columns), scales[sequence, start:stop, None], out=values[sequence])
        return values


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGuidance(AbstractGuidance):
    """Guidance in a folder.

    Attributes:
        folder: Where it lies.
        shapes: `(out, in)` of each site, in graph order.
        sequences: Kept sequence gradients; 0 for none.
        sequence_units: Tokens or samples per kept sequence.
        numbers: Facts for the report.
    """

    folder: Path
    shapes: Mapping[str, tuple[int, int]]
    sequences: int
    sequence_units: float
    numbers: Mapping[str, float]

    @property
    def units_per_sequence(self) -> float:
        """Tokens or samples that one kept sequence stands for."""
        return self.sequence_units

    @property
    def facts(self) -> Mapping[str, float]:
        """Numbers for the report."""
        return self.numbers

    def site(self, name: str) -> SiteGuidance:
        """The guidance of one site, read from its file."""
        return SiteGuidance(terms=read_site(self.folder, self._number(name)))

    def gradients(self, name: str) -> AbstractSequenceGradients | None:
        """The sequence gradients of one site, read as they are asked for."""
        if not self.sequences:
            return None
        number = self._number(name)
        paths = tuple(sorted((self.folder / "gradients").glob(f"{number:05d}-*.codes")))  # of the uses that data reach
        return GradientFiles(paths=paths, shape=(self.sequences, *self.shapes[name])) if paths else None

    def save(self) -> None:
        """Write the index; the sites' files are there already."""
        content = {
            "sites": {name: list(shape) for name, shape in self.shapes.items()},
            "sequences": self.sequences,
            "sequence_units": self.sequence_units,
            "numbers": dict(self.numbers),
        }
        write_text(self.folder / "guidance.json", json.dumps(content, indent=1))

    @staticmethod
    def read(folder: Path) -> StoredGuidance:
        """Read the index that `save` wrote."""
        try:
            content = json.loads((folder / "guidance.json").read_text())
            return StoredGuidance(
                folder=folder,
                shapes={name: (shape[0], shape[1]) for name, shape in content["sites"].items()},
                sequences=content["sequences"],
                sequence_units=content["sequence_units"],
                numbers=content["numbers"],
            )
        except (OSError, KeyError, ValueError) as error:
            raise ArtifactError(f"{folder} holds no guidance ({error}). Delete it and run again.") from error

    def _number(self, name: str) -> int:
        return list(self.shapes).index(name)


def site_file(folder: Path, number: int) -> Path:
    """Where the terms of a site lie."""
    return folder / "sites" / f"{number:05d}.safetensors"


def gradient_files(folder: Path, number: int, uses: int, sequences: int, shape: tuple[int, int]) -> GradientFiles:
    """Where the sequence gradients of a site lie."""
    paths = tuple(folder / "gradients" / f"{number:05d}-{use}.codes" for use in range(uses))
    return GradientFiles(paths=paths, shape=(sequences, *shape))


def write_site(folder: Path, number: int, terms: Sequence[QuadraticTerm]) -> None:
    """Write the terms of a site."""
    tensors: dict[str, Tensor] = {}
    for index, term in enumerate(terms):
        tensors[f"{index}.hessian"] = term.hessian
        tensors[f"{index}.row_group"] = term.row_group
        tensors[f"{index}.row_weight"] = term.row_weight
        tensors[f"{index}.row_weight_error"] = term.row_weight_error
        tensors[f"{index}.importance"] = torch.tensor(term.importance, dtype=torch.float64)
    write_tensors(site_file(folder, number), tensors)


def read_site(folder: Path, number: int) -> tuple[QuadraticTerm, ...]:
    """The terms of a site."""
    tensors = load_file(site_file(folder, number))
    count = 1 + max(int(key.partition(".")[0]) for key in tensors)
    return tuple(_term(tensors, index) for index in range(count))


def read_importance(folder: Path, number: int) -> list[float]:
    """What a weight of a site matters on average, by term, read without the rest."""
    with safe_open(site_file(folder, number), "pt") as file:
        return [float(file.get_tensor(name)) for name in sorted(file.keys()) if name.endswith(".importance")]


def _term(tensors: Mapping[str, Tensor], index: int) -> QuadraticTerm:
    return QuadraticTerm(
        hessian=tensors[f"{index}.hessian"],
        row_group=tensors[f"{index}.row_group"],
        row_weight=tensors[f"{index}.row_weight"],
        row_weight_error=tensors[f"{index}.row_weight_error"],
    )


def _write_at(path: Path, offset: int, data: bytes, size: int) -> None:
    """Write into a file that has this size from the start: sequences that do not reach an operator leave zeros."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
