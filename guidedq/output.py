"""Writing where the user asked: into a temporary folder beside it, renamed when whole; never overwriting unasked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from guidedq.errors import OutputError


def check_output(out: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that could not be written, before any long work.

    Raises:
        OutputError: it exists and is not empty (unless `overwrite`), or is a file.
    """
    if out.is_file():
        raise OutputError(f"{out} is a file. Name a folder with --out.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise OutputError(f"{out} exists and is not empty. Pass --overwrite to replace it, or name another folder.")


def check_file(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that could not be written, before any long work.

    Raises:
        OutputError: it exists (unless `overwrite`), or is a folder.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder. Name a file with --out.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists. Pass --overwrite to replace it, or name another file with --out.")


@contextmanager
def new_folder(out: Path, *, overwrite: bool) -> Generator[Path]:
    """A temporary folder that becomes `out` when the block ends well, and vanishes when it does not.

    Raises:
        OutputError: the folder cannot be made, or the disk is full.
    """
    check_output(out, overwrite=overwrite)
    partial: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        partial.chmod(0o755)
        yield partial
        _replace(partial, out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}.") from error
    finally:
        if partial is not None and partial.exists():
            shutil.rmtree(partial, ignore_errors=True)


def _replace(partial: Path, out: Path) -> None:
    """Put the new folder in place; an old one is moved aside first and removed last, so that one is always there."""
    if not out.exists():
        partial.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.replaced-", dir=out.parent))
    out.rename(aside / out.name)
    partial.rename(out)
    shutil.rmtree(aside)
