"""Which files a path stands for, and of which kind they are."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from guidedq.errors import CalibrationError


class DataKind(StrEnum):
    """What a file holds."""

    TEXT = "text"
    ARRAYS = "arrays"


KIND_OF_SUFFIX = {
    ".txt": DataKind.TEXT,
    ".jsonl": DataKind.TEXT,
    ".npz": DataKind.ARRAYS,
    ".safetensors": DataKind.ARRAYS,
}


def data_files(paths: Sequence[Path]) -> tuple[tuple[Path, ...], DataKind]:
    """The files to read, those of a folder in order of name, and their kind.

    Raises:
        CalibrationError: a path does not exist, a file is of no known kind, or kinds are mixed.
    """
    files = [file for path in paths for file in _expanded(path)]
    kinds = {KIND_OF_SUFFIX[file.suffix] for file in files}
    if len(kinds) > 1:
        raise CalibrationError(f"text and arrays cannot be mixed: {', '.join(str(path) for path in paths)}.")
    return tuple(files), kinds.pop()


def check_apart(data: Sequence[Path], evaluation: Sequence[Path]) -> None:
    """Refuse evaluation files that are also calibration files.

    Raises:
        CalibrationError: as said, naming the first.
    """
    known = {path.resolve() for path in data}
    if both := [path for path in evaluation if path.resolve() in known]:
        raise CalibrationError(
            f"{both[0]} is in --data and in --eval-data, but evaluation data must be held out. "
            "Leave --eval-data away: a tenth of --data is then held back."
        )


def _expanded(path: Path) -> list[Path]:
    known = ", ".join(KIND_OF_SUFFIX)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in KIND_OF_SUFFIX)
        if not files:
            raise CalibrationError(f"{path} holds no data file. Expected {known}.")
        return files
    if not path.is_file():
        raise CalibrationError(f"no such file or folder: {path}.")
    if path.suffix not in KIND_OF_SUFFIX:
        raise CalibrationError(f"{path} is of no known kind of data. Expected {known}, or a folder of these.")
    return [path]
