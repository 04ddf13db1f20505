"""One option for every unit within a limit: down the hulls, then an exchange of whole options for what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64, Int64

from .hull import lower_hull
from .menu import Menu

MOST_STATES = 2**14
"""Sizes told apart by the exchange within the gap between two hull solutions: it wastes at most 0.006% of the gap for
every unit that it changes."""
FEWEST_STATES = 2**8
MOST_WORK = 2**27
"""State updates in one exchange, some tenths of a second; with very many units sizes are told apart more coarsely."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Stair:
    """The options chosen at a limit. As the limit rises, distortion falls in stairs; this is one of them.

    Attributes:
        options: One for every menu.
        bytes: Of all units.
        distortion: Of all units.
        next_distortion: What the next stair reaches, minus infinity after the last.
    """

    options: tuple[int, ...]
    bytes: int
    distortion: float
    next_distortion: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Swap:
    """The options of one unit that differ from the current by no more than the gap."""

    unit: int
    options: Int64[np.ndarray, "option"]
    bytes: Int64[np.ndarray, "option"]
    distortion: Float64[np.ndarray, "option"]


def best_stair(menus: Sequence[Menu], limit_bytes: int) -> Stair:
    """The stair on which a limit lies.

    The edges of all menus' lower hulls, by falling slope, form one path from the smallest allocation. Each point of it
    has the least distortion that any combination of options can have in its bytes (a Lagrangian solution; Shoham and
    Gersho 1988). Between two points of the path, dynamic programming over the bytes in between finds better
    combinations; sizes are rounded up to a state, always the same ones between these two points. Hence distortion never
    rises with the limit: between two points, as a larger limit only allows more states; across them, as nothing that
    fits before a point has less distortion than it.

    Args:
        menus: One for every unit; the smallest options must fit.
        limit_bytes: For all units together.
    """
    units, starts, stops, gaps = _path(menus)
    options = np.zeros(len(menus), dtype=np.int64)
    slack = limit_bytes - _bytes(menus, options)
    passed = int(np.searchsorted(np.cumsum(gaps), slack, side="right"))
    for unit, stop in zip(units[:passed], stops[:passed], strict=True):
        options[unit] = stop
    if passed == len(units):
        return _stair(menus, options, -np.inf)
    slack = limit_bytes - _bytes(menus, options)
    unit, start, stop = units[passed], starts[passed], stops[passed]
    path_gain = float(menus[unit].distortion[start] - menus[unit].distortion[stop])
    return _exchange(menus, options, int(gaps[passed]), slack, path_gain)


def _path(
    menus: Sequence[Menu],
) -> tuple[list[int], list[int], list[int], Int64[np.ndarray, "edge"]]:
    """All hull edges by falling slope: unit, option before, option after, bytes. A unit's own edges stay in order."""
    rows: list[tuple[float, int, int, int, int]] = []
    for unit, menu in enumerate(menus):
        hull = lower_hull(menu.bytes, menu.distortion)
        sizes, gains = np.diff(menu.bytes[hull]), -np.diff(menu.distortion[hull])
        for edge, (size, gain) in enumerate(zip(sizes.tolist(), gains.tolist(), strict=True)):
            rows.append((-gain / size, unit, int(hull[edge]), int(hull[edge + 1]), size))
    rows.sort()
    gaps = np.array([size for *_, size in rows], dtype=np.int64)
    return [row[1] for row in rows], [row[2] for row in rows], [row[3] for row in rows], gaps


def _exchange(
    menus: Sequence[Menu], options: Int64[np.ndarray, "unit"], gap: int, slack: int, path_gain: float
) -> Stair:
    """Spend `slack` bytes, less than the `gap` to the next point of the path, on changes of whole options.

    The state is the number of bytes changed so far, from minus to plus the gap, in steps; every unit changes once at
    most.
    """
    swaps = _swaps(menus, options, gap)
    work = 2 * sum(len(swap.options) for swap in swaps)
    states = min(max(MOST_WORK // max(work, 1), FEWEST_STATES), MOST_STATES, gap)
    step = -(-gap // states)
    half = -(-gap // step)
    value = np.full(2 * half + 1, np.inf)
    value[half] = 0.0
    taken = np.full((len(swaps), len(value)), -1, dtype=np.int16)
    for index, swap in enumerate(swaps):
        value = _with_swap(value, taken[index], swap, step)
    last = half + slack // step
    best = int(value[: last + 1].argmin())
    following = value[last + 1 :]
    lower = following[following < value[best]]
    next_change = float(lower[0]) if len(lower) else -path_gain
    changed = options.copy()
    state = best
    for index in range(len(swaps) - 1, -1, -1):
        option = int(taken[index, state])
        if option >= 0:
            swap = swaps[index]
            changed[swap.unit] = swap.options[option]
            state -= -(-int(swap.bytes[option]) // step)
    return _stair(menus, changed, _distortion(menus, options) + min(next_change, float(value[best])))


def _swaps(menus: Sequence[Menu], options: Int64[np.ndarray, "unit"], gap: int) -> list[_Swap]:
    swaps: list[_Swap] = []
    for unit, (menu, option) in enumerate(zip(menus, options.tolist(), strict=True)):
        change = menu.bytes - menu.bytes[option]
        near = np.flatnonzero((np.abs(change) <= gap) & (change != 0))
        if len(near):
            distortion = menu.distortion[near] - menu.distortion[option]
            swaps.append(_Swap(unit=unit, options=near, bytes=change[near], distortion=distortion))
    return swaps


def _with_swap(
    value: Float64[np.ndarray, "state"], taken: np.ndarray, swap: _Swap, step: int
) -> Float64[np.ndarray, "state"]:
    """The least distortion for each state when this unit may change as well; `taken` is filled with its options."""
    best = value.copy()
    states = len(value)
    for option, (change, distortion) in enumerate(zip(swap.bytes.tolist(), swap.distortion.tolist(), strict=True)):
        shift = -(-change // step)
        to = slice(max(shift, 0), states + min(shift, 0))
        candidate = value[max(-shift, 0) : states - max(shift, 0)] + distortion
        better = candidate < best[to]
        np.copyto(best[to], candidate, where=better)
        np.copyto(taken[to], np.int16(option), where=better)
    return best


def _stair(menus: Sequence[Menu], options: Int64[np.ndarray, "unit"], next_distortion: float) -> Stair:
    return Stair(
        options=tuple(options.tolist()),
        bytes=_bytes(menus, options),
        distortion=_distortion(menus, options),
        next_distortion=float(next_distortion),
    )


def _bytes(menus: Sequence[Menu], options: Int64[np.ndarray, "unit"]) -> int:
    return sum(int(menu.bytes[option]) for menu, option in zip(menus, options.tolist(), strict=True))


def _distortion(menus: Sequence[Menu], options: Int64[np.ndarray, "unit"]) -> float:
    return sum(float(menu.distortion[option]) for menu, option in zip(menus, options.tolist(), strict=True))
