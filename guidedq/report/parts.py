"""Where the bits go: the parts of the model as shares of the file, budget by budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from guidedq.artifacts.report import PlanPart, PlanPoint
from guidedq.report.knee import knee
from guidedq.report.palette import INK, MUTED, PAPER, PART_COLOURS
from guidedq.report.wording import share_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR_HEIGHT = 0.74
NARROWEST_LABEL = 0.085
"""A part of a smaller share of the file has no room for its number."""


def with_parts(points: Sequence[PlanPoint]) -> list[PlanPoint]:
    """The points that tell of their parts, smallest file first; reports of older versions have none."""
    return sorted((point for point in points if point.parts), key=lambda point: point.bytes)


def draw_parts(axes: Axes, points: Sequence[PlanPoint]) -> None:
    """A bar for each budget, the smallest above: the parts' shares of the file, in them their bits per weight."""
    bend = knee(points)
    names = list(dict.fromkeys(part.name for point in points for part in point.parts))
    for place, point in enumerate(points):
        left = 0.0
        for part in point.parts:
            share = part.bytes / point.bytes
            colour = PART_COLOURS[names.index(part.name) % len(PART_COLOURS)]
            label = part.name if place == 0 else None
            axes.barh([place], [share], left=left, height=BAR_HEIGHT, color=colour, ec=PAPER, lw=0.6, label=label)
            if part.bits_per_weight and share > NARROWEST_LABEL:
                text = f"{part.bits_per_weight:.2f}"
                axes.text(left + share / 2, place, text, ha="center", va="center", color="#fff", fontsize=8.5)
            left += share
    axes.set_yticks(range(len(points)), [point.asked + " (knee)" * (point is bend) for point in points])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.0)
    axes.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", "25%", "50%", "75%", "100%"])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("share of the file; numbers: bits per weight", color=MUTED)
    axes.legend(
        frameon=False, fontsize=8.5, labelcolor=INK, handlelength=1.0, columnspacing=1.0, ncols=3,
        loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2,
    )  # fmt: skip


def parts_table(points: Sequence[PlanPoint]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: of each part its bits per weight and its share of the file."""
    points = with_parts(points)
    heads = ["budget", *dict.fromkeys(part.name for point in points for part in point.parts)]
    return heads, [[point.asked, *(part_text(part, point.bytes) for part in point.parts)] for point in points]


def part_text(part: PlanPart, file_bytes: int) -> str:
    """`2.41 bits, 34.2%`; the share alone of what has no weights."""
    share = share_text(part.bytes / file_bytes)
    return f"{part.bits_per_weight:.2f} bits, {share}" if part.bits_per_weight else share
