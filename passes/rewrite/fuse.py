"""Fuse: sites that a runtime runs as one must be stored alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from guidedq.errors import ModelError
from guidedq.ir.graph import Graph
from guidedq.stages import AbstractRewrite


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FuseRewrite(AbstractRewrite):
    """Forces each group of sites to share one format, besides the groups that the graph has already.

    Attributes:
        groups: Names of sites; two or more in a group, and no site in two groups.
    """

    groups: tuple[tuple[str, ...], ...] = ()

    def rewrite(self, graph: Graph) -> Graph:
        """The graph with these groups fused.

        Raises:
            ModelError: a group has fewer than two sites, a site is unknown, or in two groups.
        """
        groups = (*graph.fused, *(group for group in self.groups if group not in graph.fused))
        known = {site.name for site in graph.sites}
        group_of: dict[str, tuple[str, ...]] = {}
        for group in groups:
            if len(set(group)) != len(group) or len(group) < 2:
                raise ModelError(f"a fused group has two or more different sites, found {list(group)}.")
            for name in group:
                if name not in known:
                    raise ModelError(f"{name} is to be fused with {list(group)}, but no site has that name.")
                if name in group_of:
                    raise ModelError(f"{name} is in two fused groups, {list(group_of[name])} and {list(group)}.")
                group_of[name] = group
        return graph.with_fused(groups)
