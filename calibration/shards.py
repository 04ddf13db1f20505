"""Sites in parts whose statistics fit in memory together."""

from __future__ import annotations

from collections.abc import Sequence

from guidedq.ir.graph import Site


def shards_of(sites: Sequence[Site], memory_bytes: int | None) -> list[tuple[Site, ...]]:
    """Split the sites, in order, so that each part's second moments fit; one that never fits is alone in its part."""
    shards: list[list[Site]] = [[]]
    held = 0
    for site in sites:
        needed = sum(4 * site.columns**2 * site.input_groups for _ in site.uses)
        if memory_bytes is not None and shards[-1] and held + needed > memory_bytes:
            shards.append([])
            held = 0
        shards[-1].append(site)
        held += needed
    return [tuple(shard) for shard in shards]
