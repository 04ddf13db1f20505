"""Units: the sites, or fused groups of sites, that an allocator decides about; and the way back to an allocation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from guidedq.artifacts.allocation import Allocation, SiteAllocation
from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.footprint import Footprint, SiteFootprint, common_formats, site_groups
from guidedq.errors import BudgetError, CalibrationError, FormatError
from guidedq.ir.graph import Graph
from guidedq.quant.formats import Format

Choice = UInt8[np.ndarray, "_"]
"""The format of every row of a unit, as an index into the unit's formats."""
MOST_FORMATS = 255
"""A choice is kept in a byte: with a million rows the allocator's memory is mostly choices."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One site, or sites that the runtime fuses; the rows of a fused group all get one format.

    Attributes:
        names: The member sites.
        rows: Rows of each member; the unit's rows are theirs, one member after another.
        columns: Columns of each member.
        formats: The formats that all members offer.
        member_formats: For each member, where its footprint lists each of `formats`.
        distortion: Loss per token or sample of each row in each format.
        noise: Relative standard error of each row's distortion.
        single_bytes: Bytes of all members with all rows in one format.
        single_distortion: Sum over the rows in one format, accumulated in float64.
        footprint: The only member's; `None` for a fused group.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    formats: tuple[Format, ...]
    member_formats: tuple[tuple[int, ...], ...]
    distortion: Float32[np.ndarray, "format row"]
    noise: Float32[np.ndarray, "row"]
    single_bytes: tuple[int, ...]
    single_distortion: tuple[float, ...]
    footprint: SiteFootprint | None

    @property
    def segments(self) -> int:
        """The most formats that the unit's rows may be in at once."""
        return 1 if self.footprint is None else min(self.footprint.segments, len(self.formats), sum(self.rows))

    def nominal_bytes(self, format: Format) -> int:
        """Bytes of codes and grids as the format itself counts them: orders formats alike for all backends."""
        return sum(rows * format.row_bytes(columns) for rows, columns in zip(self.rows, self.columns, strict=True))

    def single(self, format_index: int) -> Choice:
        """All rows in one format."""
        return np.full(sum(self.rows), format_index, dtype=np.uint8)

    def mixed_bytes(self, counts: Int64[np.ndarray, "option format"]) -> Int64[np.ndarray, "option"]:
        """Bytes for so many rows in each format; `SiteFootprint.bytes` for many options at once, no fused groups."""
        assert self.footprint is not None
        used = counts > 0
        total = self.footprint.site_bytes + counts @ np.array(self.footprint.row_bytes, dtype=np.int64)
        total += used @ np.array(self.footprint.segment_bytes, dtype=np.int64)
        side_bytes = self.footprint.mixed_bytes + -(-counts.sum(1) * self.footprint.mixed_row_bits // 8)
        return total + np.where(used.sum(1) > 1, side_bytes, 0)


def units_of(graph: Graph, curves: Mapping[str, SiteCurve], footprint: Footprint) -> tuple[Unit, ...]:
    """The units of all sites that have a curve, in graph order.

    Raises:
        FormatError: curve, footprint and graph do not describe the same sites, or a fused group has no common format.
        CalibrationError: a distortion or its noise is negative or not finite.
    """
    if curves.keys() != footprint.sites.keys():
        odd = sorted(curves.keys() ^ footprint.sites.keys())
        raise FormatError(f"every site needs a curve and a footprint; these have only one of them: {', '.join(odd)}.")
    for name in curves:
        _check_curve(curves[name], footprint.sites[name], graph.site(name).rows)
    ordered = [site.name for site in graph.sites if site.name in curves]
    return tuple(_unit(group, graph, curves, footprint) for group in site_groups(ordered, graph.fused))


def check_feasible(units: Sequence[Unit], base_bytes: int, limits: Sequence[int]) -> None:
    """See that the smallest allocation fits in each limit.

    Raises:
        BudgetError: it does not; the message names the feasible range in bytes.
    """
    smallest = base_bytes + sum(min(unit.single_bytes) for unit in units)
    largest = base_bytes + sum(max(unit.single_bytes) for unit in units)
    if (limit_bytes := min(limits, default=smallest)) < smallest:
        sites = sum(len(unit.names) for unit in units)
        raise BudgetError(
            f"{limit_bytes} bytes is below the smallest file, {smallest} bytes ({sites} sites, each in its smallest "
            f"format, and {base_bytes} bytes besides); the largest takes {largest} bytes. Raise the budget to at least "
            f"{smallest} bytes, or allow smaller formats."
        )


def assemble(units: Sequence[Unit], choices: Sequence[Choice], graph: Graph, footprint: Footprint) -> Allocation:
    """The allocation in which each unit has this choice: bytes counted by the footprint, sites in graph order."""
    found: dict[str, SiteAllocation] = {}
    for unit, choice in zip(units, choices, strict=True):
        chosen = np.take_along_axis(unit.distortion, choice[None].astype(np.int64), axis=0)[0]
        start = 0
        for name, rows, lookup in zip(unit.names, unit.rows, unit.member_formats, strict=True):
            site = footprint.sites[name]
            indices = np.array(lookup, dtype=np.int64)[choice[start : start + rows]]
            counts = dict(enumerate(np.bincount(indices, minlength=len(site.formats)).tolist()))
            found[name] = SiteAllocation(
                formats=site.formats,
                choice=torch.from_numpy(indices),
                bytes=site.bytes(counts),
                distortion=float(chosen[start : start + rows].sum(dtype=np.float64)),
            )
            start += rows
    ordered = {site.name: found[site.name] for site in graph.sites if site.name in found}
    return Allocation(sites=ordered, base_bytes=footprint.base_bytes)


def _unit(group: tuple[str, ...], graph: Graph, curves: Mapping[str, SiteCurve], footprint: Footprint) -> Unit:
    formats = common_formats(footprint, group)
    sites = [footprint.sites[name] for name in group]
    rows = tuple(graph.site(name).rows for name in group)
    lookups = tuple(tuple(site.formats.index(format) for format in formats) for site in sites)
    curved = [(curves[name].distortion.numpy().T, lookup) for name, lookup in zip(group, lookups, strict=True)]
    if len(group) == 1:
        distortion = np.ascontiguousarray(curved[0][0])
    else:
        distortion = np.concatenate([values[list(lookup)] for values, lookup in curved], axis=1)
    members = list(zip(sites, rows, lookups, strict=True))
    return Unit(
        names=group,
        rows=rows,
        columns=tuple(graph.site(name).columns for name in group),
        formats=formats,
        member_formats=lookups,
        distortion=distortion,
        noise=np.concatenate([curves[name].row_noise.numpy() for name in group]),
        single_bytes=tuple(
            sum(site.bytes({lookup[index]: count}) for site, count, lookup in members) for index in range(len(formats))
        ),
        single_distortion=tuple(distortion.sum(axis=1, dtype=np.float64).tolist()),
        footprint=sites[0] if len(group) == 1 else None,
    )


def _check_curve(curve: SiteCurve, site: SiteFootprint, rows: int) -> None:
    if curve.formats != site.formats:
        raise FormatError(f"{curve.name}: the curve's formats are not the footprint's.")
    if len(curve.formats) > MOST_FORMATS:
        raise FormatError(f"{curve.name}: {len(curve.formats)} formats; an allocator takes at most {MOST_FORMATS}.")
    if tuple(curve.distortion.shape) != (rows, len(site.formats)) or len(curve.row_noise) != rows:
        found = f"distortion {list(curve.distortion.shape)}, noise {list(curve.row_noise.shape)}"
        raise FormatError(f"{curve.name}: expected {rows} rows and {len(site.formats)} formats, found {found}.")
    for what, values in (("distortion", curve.distortion), ("noise", curve.row_noise)):
        lowest, highest = (float(extreme) for extreme in values.aminmax())
        if not 0.0 <= lowest <= highest < float("inf"):
            raise CalibrationError(f"{curve.name}: a row's {what} is negative or not finite.")
