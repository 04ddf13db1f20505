"""Scope: quantize linear and convolution sites only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from guidedq.errors import ModelError
from guidedq.ir.graph import Graph
from guidedq.stages import AbstractRewrite


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeRewrite(AbstractRewrite):
    """Leaves embeddings, and everything tied to one, and the head alone; other tools quote sizes in this scope."""

    def rewrite(self, graph: Graph) -> Graph:
        """The graph with these sites kept.

        Raises:
            ModelError: nothing would be left to quantize.
        """
        outside = frozenset(site.name for site in graph.sites if not site.is_linear or site.name == graph.head)
        rewritten = graph.with_kept(outside)
        if not rewritten.quantizable:
            raise ModelError(
                "the model has no linear or convolution site besides its embeddings and head, so that scope linear "
                "leaves nothing to quantize. Compile it with --scope file."
            )
        return rewritten
