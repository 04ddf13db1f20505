"""Exact bytes: what a backend's weights file takes for any allocation, counted before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from guidedq.errors import FormatError
from guidedq.quant.formats import EntropyFormat, Format


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFootprint:
    """What one site can be stored as, and for how many bytes. Exact counts are integers and never below the truth.

    Attributes:
        formats: The formats that the backend can hold for this site, never empty.
        row_bytes: Bytes of one row in each of them.
        segment_bytes: Bytes that a segment in each of them adds, however many rows it has.
        site_bytes: Bytes that the site takes whatever its formats.
        mixed_row_bits: Bits per row to say which segment it belongs to, when there is more than one segment.
        mixed_bytes: Further bytes when there is more than one segment.
        segments: Most segments that one site may have; 1 where rows cannot be mixed.
        code_bytes: The part of `row_bytes` that is an estimate: the codes of a row in an entropy format, 0 in others.
            Empty where all is exact.
    """

    formats: tuple[Format, ...]
    row_bytes: tuple[int, ...]
    segment_bytes: tuple[int, ...]
    site_bytes: int
    mixed_row_bits: int = 0
    mixed_bytes: int = 0
    segments: int = 1
    code_bytes: tuple[int, ...] = ()

    def bytes(self, rows_per_format: Mapping[int, int]) -> int:
        """Bytes of the site with so many rows in each format (by index); formats with no rows are ignored."""
        used = {index: rows for index, rows in rows_per_format.items() if rows}
        total = self.site_bytes
        total += sum(rows * self.row_bytes[index] + self.segment_bytes[index] for index, rows in used.items())
        if len(used) > 1:
            total += self.mixed_bytes + -(-sum(used.values()) * self.mixed_row_bits // 8)
        return total


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes of the whole weights file.

    Attributes:
        base_bytes: Everything that no allocation changes: headers, graph, tensors left alone.
        sites: By name, the sites that are to be quantized.
    """

    base_bytes: int
    sites: Mapping[str, SiteFootprint]


def code_bytes_of(formats: Sequence[Format], columns: int) -> tuple[int, ...]:
    """Estimates of what the codes of a row take in each entropy format; empty if there is none."""
    sizes = tuple(format.code_bytes(columns) if isinstance(format, EntropyFormat) else 0 for format in formats)
    return sizes if any(sizes) else ()


def smallest_bytes(footprint: Footprint, rows: Mapping[str, int], fused: Sequence[Sequence[str]] = ()) -> int:
    """Bytes of the file with every site in its smallest format; no mixture is smaller.

    Args:
        footprint: What the backend can hold.
        rows: Rows of every site in `footprint`.
        fused: Groups of sites that share one format, out of those common to all members.

    Raises:
        FormatError: the members of a group have no format in common.
    """
    return _extreme_bytes(footprint, rows, fused, min)


def largest_bytes(footprint: Footprint, rows: Mapping[str, int], fused: Sequence[Sequence[str]] = ()) -> int:
    """Bytes of the file with every site in its most expensive single format; arguments as for `smallest_bytes`."""
    return _extreme_bytes(footprint, rows, fused, max)


def common_formats(footprint: Footprint, group: Sequence[str]) -> tuple[Format, ...]:
    """The formats that all sites of a group offer, in the order of the first.

    Raises:
        FormatError: there is none.
    """
    offered = [footprint.sites[name].formats for name in group]
    common = tuple(format for format in offered[0] if all(format in formats for formats in offered[1:]))
    if not common:
        listed = "; ".join(f"{name}: {', '.join(map(str, footprint.sites[name].formats))}" for name in group)
        raise FormatError(
            f"the runtime fuses {', '.join(group)}: they must share one format and have none in common ({listed})."
        )
    return common


def site_groups(names: Iterable[str], fused: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The names in order, each alone or with its fused partners where the first of them stands.

    Partners that are not among the names (sites left alone) are dropped.
    """
    present = dict.fromkeys(names)
    group_of = {name: tuple(group) for group in fused for name in group}
    groups: dict[tuple[str, ...], None] = {}
    for name in present:
        members = group_of.get(name, (name,))
        groups[tuple(member for member in members if member in present)] = None
    return list(groups)


def _extreme_bytes(
    footprint: Footprint, rows: Mapping[str, int], fused: Sequence[Sequence[str]], extreme: Callable[[list[int]], int]
) -> int:
    total = footprint.base_bytes
    for group in site_groups(footprint.sites, fused):
        sizes: list[int] = []
        for format in common_formats(footprint, group):
            sites = [(footprint.sites[name], rows[name]) for name in group]
            sizes.append(sum(site.bytes({site.formats.index(format): count}) for site, count in sites))
        total += extreme(sizes)
    return total
