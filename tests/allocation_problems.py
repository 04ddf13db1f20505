"""Allocation problems for tests: graphs of sites with made-up curves and footprints, and Hypothesis strategies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.footprint import Footprint, SiteFootprint, code_bytes_of, largest_bytes, smallest_bytes
from guidedq.ir.graph import Graph, Site, Use, UseKind, operator_graph
from guidedq.quant.formats import AffineFormat, EntropyFormat, FloatFormat, Format
from guidedq.stages import AbstractAllocator

FORMATS: tuple[Format, ...] = (
    AffineFormat(bits=2, group_size=32),
    AffineFormat(bits=3, group_size=0),
    AffineFormat(bits=3, group_size=32),
    AffineFormat(bits=4, group_size=64),
    AffineFormat(bits=5, group_size=32),
    AffineFormat(bits=8, group_size=0),
    FloatFormat(),
)
CODED: tuple[Format, ...] = (EntropyFormat(bits=2.5), EntropyFormat(bits=4.0))


@dataclass(frozen=True)
class Problem:
    """Everything that an allocator is given, besides the limit."""

    graph: Graph
    curves: dict[str, SiteCurve]
    footprint: Footprint

    @property
    def smallest(self) -> int:
        return smallest_bytes(self.footprint, self.rows, self.graph.fused)

    @property
    def largest(self) -> int:
        return largest_bytes(self.footprint, self.rows, self.graph.fused)

    @property
    def rows(self) -> dict[str, int]:
        return {site.name: site.rows for site in self.graph.sites}

    def limits(self, count: int) -> list[int]:
        """Limits from the smallest to somewhat above the largest file."""
        return np.linspace(self.smallest, 1.02 * self.largest + 1, count).astype(int).tolist()

    def solve(self, allocator: AbstractAllocator, limit_bytes: int) -> Allocation:
        return allocator.allocate(self.graph, self.curves, self.footprint, [limit_bytes])[0]


def problem_of(
    distortions: Sequence[np.ndarray],
    formats: Sequence[tuple[Format, ...]],
    *,
    columns: int = 64,
    segments: int = 1,
    side_bytes: int = 16,
    noise: float = 0.0,
    fused: Sequence[Sequence[int]] = (),
    base_bytes: int = 100,
) -> Problem:
    """A problem from each site's distortions `[row, format]` and formats; `fused` holds positions of sites."""
    sites = tuple(
        Site(
            name=f"site{index}",
            shape=(len(distortion), columns),
            uses=(Use(operator=f"site{index}", kind=UseKind.LINEAR),),
        )
        for index, distortion in enumerate(distortions)
    )
    curves: dict[str, SiteCurve] = {}
    footprints: dict[str, SiteFootprint] = {}
    for site, distortion, offered in zip(sites, distortions, formats, strict=True):
        curves[site.name] = SiteCurve(
            name=site.name,
            formats=offered,
            distortion=torch.from_numpy(np.asarray(distortion, dtype=np.float32)),
            row_noise=torch.full((site.rows,), noise),
            entropy_bytes=torch.zeros(len(offered)),
            projections=None,
        )
        footprints[site.name] = SiteFootprint(
            formats=offered,
            row_bytes=tuple(format.row_bytes(columns) for format in offered),
            segment_bytes=tuple(side_bytes + index for index in range(len(offered))),
            site_bytes=side_bytes,
            mixed_row_bits=3,
            mixed_bytes=side_bytes // 2,
            segments=segments,
            code_bytes=code_bytes_of(offered, columns),
        )
    groups = tuple(tuple(f"site{index}" for index in group) for group in fused)
    graph = Graph(operators=operator_graph([], []), sites=sites, fused=groups)
    return Problem(graph=graph, curves=curves, footprint=Footprint(base_bytes=base_bytes, sites=footprints))


def natural_problem(
    seed: int,
    *,
    sites: int = 4,
    rows: int = 12,
    segments: int = 3,
    formats: int = 7,
    noise: float = 0.0,
    columns: int = 64,
) -> Problem:
    """Log-normal sensitivities, distortions that fall about fourfold per stored bit."""
    random = np.random.default_rng(seed)
    offered = FORMATS[:formats]
    stored = np.array([8 * format.row_bytes(columns) / columns for format in offered])
    distortions: list[np.ndarray] = []
    for _ in range(sites):
        level = random.lognormal(random.normal(0, 1), 1.0, size=(rows, 1))
        distortions.append(level * 4.0**-stored * random.lognormal(0, 0.2, size=(rows, len(offered))))
    return problem_of(distortions, [offered] * sites, columns=columns, segments=segments, noise=noise, side_bytes=4)


@st.composite
def problems(draw: st.DrawFn, most_sites: int = 4, most_rows: int = 5) -> Problem:
    """Any curves: rising, flat, zero, not convex; sites that offer different formats; noise; fused groups."""
    count = draw(st.integers(1, most_sites))
    value = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1e4, width=32))
    formats: list[tuple[Format, ...]] = []
    distortions: list[np.ndarray] = []
    for _ in range(count):
        offered = draw(st.lists(st.sampled_from((*FORMATS[1:], *CODED)), unique=True, max_size=4))
        offered = draw(st.permutations([FORMATS[0], *offered]))
        rows = draw(st.integers(1, most_rows))
        values = draw(st.lists(value, min_size=rows * len(offered), max_size=rows * len(offered)))
        formats.append(tuple(offered))
        distortions.append(np.array(values).reshape(rows, len(offered)))
    fused = [[0, 1]] if count > 1 and draw(st.booleans()) else []
    return problem_of(
        distortions,
        formats,
        segments=draw(st.integers(1, 4)),
        side_bytes=draw(st.sampled_from([0, 1, 20])),
        noise=draw(st.sampled_from([0.0, 0.3, 5.0])),
        fused=fused,
    )
