"""The zoo's model of files: magika, on files of the system it is made on."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx

from .entries import Facts, write_entry
from .sources import Sources, store

FEATURES, BLOCK, PADDING = 1024, 4096, 256
"""Bytes of each end, bytes read for them, and what stands for none (config.min.json of the model)."""
SMALLEST = 64
"""Bytes: magika answers without the model for the smallest."""
ROOTS = ("/usr/share", "/usr/lib", "/usr/include", "/usr/bin", "/etc")
OF_A_KIND = 60
"""Files with one ending at most, else most would be of very few kinds."""
FILES = (512, 1024)


def magika(sources: Sources, folder: Path) -> None:
    """Files to their kinds."""
    store(onnx.load(str(sources.find("magika/model.onnx"))), folder)
    paths = _files()
    order = sources.generator().permutation(len(paths))
    chosen = np.stack([features(paths[index].read_bytes()) for index in order[: sum(FILES)]])
    facts = Facts(family="bytes", output="target_label", meaning="probabilities", batch=32,
                  source="magika 1.0.3, standard_v3_3")  # fmt: skip
    write_entry(
        folder, facts, calibration={"bytes": chosen[: FILES[0]]}, evaluation={"bytes": chosen[FILES[0] : sum(FILES)]}
    )


def features(content: bytes) -> np.ndarray:
    """The first and last bytes of a file, stripped, as magika takes them."""
    first, last = content[:BLOCK].lstrip()[:FEATURES], content[-BLOCK:].rstrip()[-FEATURES:]
    found = np.full(2 * FEATURES, PADDING, np.int32)
    found[: len(first)] = list(first)
    found[2 * FEATURES - len(last) :] = list(last)
    return found


def _files() -> list[Path]:
    """Files of all kinds, in the order of their names."""
    kinds = defaultdict[str, list[Path]](list)
    for root in ROOTS:
        for path in sorted(Path(root).rglob("*")):
            kind = kinds[path.suffix]
            if len(kind) < OF_A_KIND and path.is_file() and not path.is_symlink() and path.stat().st_size >= SMALLEST:
                kind.append(path)
    return [path for kind in kinds.values() for path in kind]
