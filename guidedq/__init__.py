"""guidedq: a trained model and a size in, the best model of that size out, with its loss predicted beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guidedq.announcement import announce

if TYPE_CHECKING:
    from guidedq.api import (
        Artifact,
        at_precision,
        check,
        compile,
        load,
        load_quantized,
        plan,
        precisions,
        profile,
        set_precision,
        verify,
    )
    from guidedq.errors import GuidedQError

__all__ = [
    "Artifact",
    "GuidedQError",
    "__version__",
    "at_precision",
    "check",
    "compile",
    "load",
    "load_quantized",
    "plan",
    "precisions",
    "profile",
    "set_precision",
    "verify",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the face when it is first used: `import guidedq` alone loads no framework."""
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("guidedq.errors" if name == "GuidedQError" else "guidedq.api"), name)
    raise AttributeError(f"module 'guidedq' has no attribute {name!r}")


announce()
