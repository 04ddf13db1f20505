"""The path down all menus' hulls, and from which of its points a limit may start to spend what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Int64

from .hull import lower_hull
from .menu import Menu

LOOK_BACK = 3
"""Points of the path that a limit may start from: the last before it, and so many less one before that."""
SMALLEST_SHARE = 2.0**-10
"""Of the path's bytes: where the next points lie so near, another start would spend little more. In a file of at most
16 bits per weight this is 0.016 bits."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """An option for every unit, from which single rows may be upgraded.

    Attributes:
        options: One for every menu.
        bytes: Of all units.
        distortion: Of all units.
        floor: The distortion below which rows are not upgraded from here.
    """

    options: tuple[int, ...]
    bytes: int
    distortion: float
    floor: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """All edges of the menus' lower hulls by falling slope, from the smallest options on; a unit's own in order.

    Each point between two edges has the least distortion that any combination of options has in its bytes (a Lagrangian
    solution; Everett 1963).

    Attributes:
        units: Whose option changes.
        before: From which option.
        after: To which.
        sizes: Bytes that this takes.
    """

    units: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    sizes: Int64[np.ndarray, "edge"]

    def passed(self, slack_bytes: int) -> int:
        """How many edges fit, one after another."""
        return int(np.searchsorted(np.cumsum(self.sizes), slack_bytes, side="right"))

    def options(self, count: int, menus: int) -> Int64[np.ndarray, "menu"]:
        """The options after so many edges."""
        chosen = np.zeros(menus, dtype=np.int64)
        for unit, option in zip(self.units[:count], self.after[:count], strict=True):
            chosen[unit] = option
        return chosen


def path_of(menus: Sequence[Menu]) -> Path:
    """The path of these menus."""
    edges: list[tuple[float, int, int, int, int]] = []
    for unit, menu in enumerate(menus):
        hull = lower_hull(menu.bytes, menu.distortion)
        sizes, gains = np.diff(menu.bytes[hull]), -np.diff(menu.distortion[hull])
        for edge, (size, gain) in enumerate(zip(sizes.tolist(), gains.tolist(), strict=True)):
            edges.append((-gain / size, unit, int(hull[edge]), int(hull[edge + 1]), size))
    edges.sort()
    return Path(
        units=tuple(unit for _, unit, *_ in edges),
        before=tuple(before for _, _, before, *_ in edges),
        after=tuple(after for *_, after, _ in edges),
        sizes=np.array([size for *_, size in edges], dtype=np.int64),
    )


def path_starts(menus: Sequence[Menu], path: Path, passed: int) -> list[Start]:
    """The points of the path that a limit between point `passed` and the next may start from.

    A point is offered to all limits from its own bytes to those of the point `LOOK_BACK` further on, whose distortion
    is its floor. So what is reached from it falls with the limit, and is not missed once it is no longer offered. The
    last points are offered without end, and have no floor.
    """
    starts: list[Start] = []
    for point in range(passed, max(passed - LOOK_BACK, -1), -1):
        reach = path.sizes[point : point + LOOK_BACK].sum()
        last = point == len(path.sizes)
        if last or reach >= SMALLEST_SHARE * path.sizes.sum():
            open_ended = point + LOOK_BACK > len(path.sizes)
            beyond = -np.inf if open_ended else _total(menus, path.options(point + LOOK_BACK, len(menus)))[1]
            starts.append(start_of(menus, path.options(point, len(menus)), float(beyond)))
    return starts


def start_of(menus: Sequence[Menu], options: Int64[np.ndarray, "menu"], floor: float) -> Start:
    """A start with its bytes and distortion."""
    size, distortion = _total(menus, options)
    return Start(options=tuple(options.tolist()), bytes=size, distortion=distortion, floor=floor)


def _total(menus: Sequence[Menu], options: Int64[np.ndarray, "menu"]) -> tuple[int, float]:
    chosen = list(zip(menus, options.tolist(), strict=True))
    return (
        sum(int(menu.bytes[option]) for menu, option in chosen),
        sum(float(menu.distortion[option]) for menu, option in chosen),
    )
