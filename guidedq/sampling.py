"""Samplers by name, with what the user says of them, and the files that they read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from guidedq.errors import CalibrationError
from guidedq.registry import build_stage
from guidedq.stages import AbstractSampler


def named_sampler(name: str, samples: int | None, sequence_length: int | None) -> AbstractSampler:
    """The sampler of this name; what is `None` is left to it.

    Raises:
        RecipeError: it takes no such number.
    """
    options = {"samples": samples, "sequence-length": sequence_length}
    return build_stage(name, "sample", {option: str(value) for option, value in options.items() if value is not None})


def check_data(paths: Iterable[Path]) -> None:
    """See that all files and folders are there.

    Raises:
        CalibrationError: some are not; the message names them.
    """
    if missing := [path for path in paths if not path.exists()]:
        raise CalibrationError(f"no such data: {', '.join(map(str, missing))}.")
