"""Files that are there whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; its folder is made if need be.

    Raises:
        OSError: the disk is full, or the place forbidden (safetensors has an error of its own for this).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    contiguous = {name: values.contiguous() for name, values in tensors.items()}
    with _renamed(partial, path):
        save_file(contiguous, partial, metadata=dict(metadata) if metadata else None)


def write_text(path: Path, text: str) -> None:
    """Write a text file.

    Raises:
        OSError: the disk is full, or the place forbidden.
    """
    partial = path.with_suffix(".partial")
    with _renamed(partial, path):
        partial.write_text(text, encoding="utf-8")


@contextmanager
def _renamed(partial: Path, path: Path) -> Generator[None]:
    """Rename what the block wrote; remove it if the block failed."""
    try:
        yield
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)
