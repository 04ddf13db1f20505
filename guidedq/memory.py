"""Memory of this process: its peak, and giving back what is no longer used."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

LARGE_PARAMETERS = 1 << 24
"""Weights of a site whose tensors are so large that freed memory is given back first."""
TIDY_SITES = 32
"""Sites after which freed memory is given back: what is kept lies between what is freed."""


def peak_memory_bytes() -> int:
    """The most memory that this process has had, resident, in bytes; 0 where the system does not tell (Windows)."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back() -> None:
    """Return freed heap pages to the system, where the C library has a call for it (glibc); takes milliseconds.

    glibc keeps tensors of up to 32 MB on its heap and, once freed, the holes between those that live on: over a pass
    through a model these add up to a third of what is in use.
    """
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or none to be asked
        return None
