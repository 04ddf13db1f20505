"""Keep: leave the sites alone that the user names."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import final

from guidedq.errors import ModelError, RecipeError
from guidedq.ir.graph import Graph
from guidedq.stages import AbstractRewrite

NAMES_SHOWN = 8
"""Site names in an error: enough to see how they are built."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRewrite(AbstractRewrite):
    """Leaves the sites alone whose name matches a pattern.

    Attributes:
        patterns: Shell patterns (`*`, `?`, `[...]`) for whole names, case matters.
    """

    patterns: tuple[str, ...] = ()

    def rewrite(self, graph: Graph) -> Graph:
        """The graph with these sites kept.

        Raises:
            RecipeError: a pattern matches no site.
            ModelError: nothing would be left to quantize.
        """
        names = [site.name for site in graph.sites]
        kept: set[str] = set()
        for pattern in self.patterns:
            matching = {name for name in names if fnmatchcase(name, pattern)}
            if not matching:
                shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
                raise RecipeError(f"the pattern {pattern!r} matches no site. The sites: {shown}.")
            kept |= matching
        rewritten = graph.with_kept(frozenset(kept))
        if not rewritten.quantizable:
            raise ModelError(
                f"the patterns {', '.join(self.patterns)} leave no site to quantize; there are {len(names)}."
            )
        return rewritten
