"""How transformers learns of guidedq's artifacts without being imported for it.

Packages say by entry points of the group `guidedq.transformers` what is to be called as soon as transformers has its
table of quantizers: at once if it is imported already, else right after it is.
"""

from __future__ import annotations

import sys
from typing import Any

GROUP = "guidedq.transformers"
TABLE = "transformers.quantizers.auto"


def announce() -> None:
    """Call the entry points, now or when the table of quantizers is imported."""
    if TABLE in sys.modules:
        _call()
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds the table as others find it, and calls once it was executed; then it is gone."""

    def find_spec(self, name: str, *rest: Any) -> Any:
        if name != TABLE:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, *rest) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_call(module: Any) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    _call()

            spec.loader.exec_module = execute_and_call
        return spec


def _call() -> None:
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        point.load()()
