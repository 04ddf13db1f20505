"""The allocation drawn over the depth of the model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from guidedq.artifacts.report import Report, SiteFacts
from guidedq.quant.formats import MAXIMUM_BITS, parse_format
from guidedq.report.drawing import Size
from guidedq.report.palette import INK, MUTED, PAPER, WIDTH_COLOURS
from guidedq.report.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK = re.compile(r"^(.*?)[./](\d+)(?=[./]|$)")
"""The first number in a dotted name says which repeated block a site belongs to."""
LARGE_SHARE = 0.05
"""A site of this share of the parameters is labelled by name if it belongs to no block."""
LABELS_PER_INCH = 1.7
"""So many labels fit along the axis."""
LETTER_INCHES = 0.085
"""Width of a letter of a label, its share of the frame's margins counted."""
LEGEND_INCHES = 1.25
"""Width of the widest entry of the legend."""
WIDE_SHARE = 0.004
"""Bars of more than this share of the axis are parted by a thin gap."""
GAP = 0.6
"""Of that, in points."""
Bar = tuple[float, float, float, float, str]
"""Left, right, low, high and colour."""


def depth_figure(report: Report, size: Size) -> Figure:
    """Bits per weight of every site in the order of the data, and below it the share of its rows at each width.

    A site's width on the axis is its share of the parameters: areas of the upper plot are bytes.
    """
    figure, (upper, lower) = new_figure(size, rows=2, sharex=True, height_ratios=(2.1, 1.0))
    total = sum(site.parameters for site in report.sites)
    parts = [site.parameters / total for site in report.sites]
    edges = [0.0, *accumulate(parts)]
    bars: list[Bar] = []
    rows: list[Bar] = []
    for site, left, right in zip(report.sites, edges, edges[1:], strict=False):
        shares = row_shares(site)
        bars.append((left, right, 0.0, site.bits, WIDTH_COLOURS[_main_width(shares)]))
        tops = [0.0, *accumulate(shares.values())]
        for bits, floor, top in zip(shares, tops, tops[1:], strict=False):
            rows.append((left, right, floor, top, WIDTH_COLOURS[bits]))
    _draw_bars(upper, bars)
    _draw_bars(lower, rows)
    linear = report.budget.scope == "linear"
    mean = report.size.linear_bits_per_weight if linear else report.size.bits_per_weight
    label = f"{'linear layers' if linear else 'whole file'} {mean:.2f}"
    upper.axhline(mean, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label=label)
    upper.set_ylim(0, 1.06 * max(mean, *(site.bits for site in report.sites)))
    upper.set_ylabel("bits per weight")
    lower.set_ylabel("rows")
    lower.set_ylim(0, 1)
    lower.set_yticks([0, 1], ["0", "all"])
    lower.set_xlim(0, 1)
    for axes in (upper, lower):
        axes.grid(visible=False, axis="x")
    _label_blocks(lower, report.sites, edges[:-1], size)
    _legend(upper, report.sites, size)
    return figure


def row_shares(site: SiteFacts) -> Mapping[int, float]:
    """Share of the site's rows at each width in bits, fractions rounded up, narrowest first."""
    counts: dict[int, int] = {}
    for format, rows in site.rows.items():
        bits = math.ceil(parse_format(format).bits)
        counts[bits] = counts.get(bits, 0) + rows
    total = sum(counts.values())
    return {bits: counts[bits] / total for bits in sorted(counts)}


def _draw_bars(axes: Any, bars: Sequence[Bar]) -> None:
    """All bars as one collection, which is drawn far faster than single ones."""
    from matplotlib.collections import PolyCollection

    corners = [[(left, low), (left, high), (right, high), (right, low)] for left, right, low, high, _ in bars]
    lines = [GAP if right - left > WIDE_SHARE else 0.0 for left, right, *_ in bars]
    colours = [colour for *_, colour in bars]
    axes.add_collection(PolyCollection(corners, facecolors=colours, edgecolors=PAPER, linewidths=lines))


def _main_width(shares: Mapping[int, float]) -> int:
    """The width of most rows, of equals the narrower."""
    return max(shares, key=lambda bits: (shares[bits], -bits))


def _label_blocks(axes: Any, sites: Sequence[SiteFacts], edges: Sequence[float], size: Size) -> None:
    starts = list(_blocks(sites, edges))
    every = max(1, -(-len(starts) // max(1, int(LABELS_PER_INCH * size[0]))))
    shown: list[tuple[float, str]] = []
    for number, (edge, label, large) in enumerate(starts):
        clear = not shown or edge - shown[-1][0] > LETTER_INCHES * (len(shown[-1][1]) + 1) / size[0]
        if (large or number % every == 0) and clear:
            shown.append((edge, label))
    axes.set_xticks([edge for edge, _ in shown], [label for _, label in shown], ha="left", color=MUTED)


def _blocks(sites: Sequence[SiteFacts], edges: Sequence[float]) -> Iterator[tuple[float, str, bool]]:
    """Where a new block begins, its label, and whether it is a large site without a block."""
    found = {site.name: BLOCK.match(site.name) for site in sites}
    one_stack = len({match[1] for match in found.values() if match}) == 1
    total = sum(site.parameters for site in sites)
    before = ""
    for site, edge in zip(sites, edges, strict=True):
        match = found[site.name]
        if match is None:
            if site.parameters > LARGE_SHARE * total:
                yield edge, _last_word(site.name), True
            before = ""
        elif match[0] != before:
            before = match[0]
            yield edge, match[2] if one_stack else f"{_last_word(match[1])}.{match[2]}", False


def _last_word(name: str) -> str:
    words = [word for word in re.split(r"[./]", name) if word and word not in ("weight", "default")]
    return words[-1] if words else name


def _legend(axes: Any, sites: Sequence[SiteFacts], size: Size) -> None:
    from matplotlib.patches import Patch

    widths = sorted({bits for site in sites for bits in row_shares(site)})
    names = {bits: f"{bits}-bit" if bits <= MAXIMUM_BITS else f"fp{bits}" for bits in widths}
    patches = [Patch(color=WIDTH_COLOURS[bits], label=name) for bits, name in names.items()]
    handles = [*patches, *axes.get_legend_handles_labels()[0]]
    axes.legend(
        handles=handles,
        ncols=min(len(handles), max(1, int(size[0] / LEGEND_INCHES))),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        handlelength=1.1,
        handleheight=0.9,
        columnspacing=1.0,
        borderaxespad=0.1,
        handletextpad=0.4,
    )
