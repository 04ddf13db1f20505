"""The compiled library, if there is one: found beside this file, called through ctypes, so it needs no headers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import final

NAME = "_kernels"
"""As `pyproject.toml` calls it."""
_BYTES, _ADDRESS, _NUMBER, _INT = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_FLOAT = ctypes.c_float


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Library:
    """What `kernels.h` declares.

    Attributes:
        instruction_sets: Names of those that this processor has, best first; calls take one's place in this list.
        multiply: `guidedq_multiply`.
        dequantize: `guidedq_dequantize`.
        multiply_planes: `guidedq_multiply_planes`.
        dequantize_planes: `guidedq_dequantize_planes`.
    """

    instruction_sets: tuple[str, ...]
    multiply: Callable[..., int]
    dequantize: Callable[..., int]
    multiply_planes: Callable[..., int]
    dequantize_planes: Callable[..., int]


@cache
def library() -> Library | None:
    """The library, or None where it was not built or cannot be loaded."""
    paths = [Path(__file__).parent / (NAME + suffix) for suffix in EXTENSION_SUFFIXES]
    built = next((path for path in paths if path.is_file()), None)
    try:
        return None if built is None else load_library(built)
    except OSError:  # built for another machine
        return None


def load_library(path: Path) -> Library:
    """Load the library from a file.

    Raises:
        OSError: it is no library for this machine.
    """
    loaded = ctypes.CDLL(str(path))
    name_of = loaded.guidedq_instruction_set
    name_of.argtypes, name_of.restype = (_INT,), _BYTES
    names: list[str] = []
    while (name := name_of(len(names))) is not None:
        names.append(name.decode())
    weight = (_BYTES, _ADDRESS, _ADDRESS, _ADDRESS)  # layout, blob, scales, rows or places
    settings = (_ADDRESS, _INT, _INT)  # outputs, threads, instruction set
    loaded.guidedq_multiply.argtypes = (*weight, _ADDRESS, _NUMBER, *settings, _INT)
    loaded.guidedq_dequantize.argtypes = (*weight, _ADDRESS, _NUMBER, _NUMBER, *settings)
    nested = (_BYTES, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, _FLOAT)  # layout, planes, scales, zeros, shifts, ratio
    loaded.guidedq_multiply_planes.argtypes = (*nested, _ADDRESS, _NUMBER, *settings)
    loaded.guidedq_dequantize_planes.argtypes = (*nested, _ADDRESS, _NUMBER, _NUMBER, *settings)
    return Library(
        instruction_sets=tuple(names),
        multiply=loaded.guidedq_multiply,
        dequantize=loaded.guidedq_dequantize,
        multiply_planes=loaded.guidedq_multiply_planes,
        dequantize_planes=loaded.guidedq_dequantize_planes,
    )
