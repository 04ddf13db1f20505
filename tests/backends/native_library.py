"""Compiles the kernels for tests, whether or not they were built when the package was installed."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from missing_tools import missing

from guidedq.backends.packed_torch.native import library as native_library
from guidedq.backends.packed_torch.native.library import Library, library, load_library

NATIVE = Path(native_library.__file__).parent


def compiler() -> str:
    """The C compiler; where there is none, the test is skipped."""
    name = (sysconfig.get_config_var("CC") or "cc").split()[0]
    found = shutil.which(name) or shutil.which("cc")
    return found or missing("no C compiler")


@cache
def compiled() -> Library:
    """The library that was installed, or else one compiled now."""
    if (installed := library()) is not None:
        return installed
    built = Path(mkdtemp()) / "kernels.so"
    sources = sorted(map(str, NATIVE.glob("*.c")))
    command = [compiler(), "-std=c11", "-O1", "-shared", "-fPIC", "-pthread", *sources, "-o", str(built)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return load_library(built)
