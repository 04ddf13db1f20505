"""An exchange of whole options for the bytes between two points of the path: dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64, Int16, Int64

from .menu import Menu
from .path import Path, Start, start_of

MOST_STATES = 2**14
"""Sizes told apart by the exchange: it wastes at most 0.006% of the gap for every unit that it changes."""
FEWEST_STATES = 2**8
MOST_WORK = 2**27
"""State updates in one exchange, some tenths of a second; with very many units sizes are told apart more coarsely."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Swap:
    """The options of one unit that differ from the current by no more than the gap."""

    unit: int
    options: Int64[np.ndarray, "option"]
    bytes: Int64[np.ndarray, "option"]
    distortion: Float64[np.ndarray, "option"]


def exchanged_start(menus: Sequence[Menu], path: Path, passed: int, slack_bytes: int) -> Start:
    """The best combination of options that is found between point `passed` of the path and the next.

    The state is the number of bytes changed so far, from minus to plus the gap between the points, rounded up in steps
    that are always the same between these two; every unit changes once at most. As the slack grows, distortion falls in
    stairs: between two points as more slack only allows more states, and across them as nothing that fits before a
    point has less distortion than it. The next stair is the floor of this one.

    Args:
        menus: Of all units.
        path: Of these menus.
        passed: A point, not the last.
        slack_bytes: What is left at this point, less than the gap.
    """
    options = path.options(passed, len(menus))
    gap = int(path.sizes[passed])
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
    last = half + slack_bytes // step
    best = int(value[: last + 1].argmin())
    lower = value[last + 1 :][value[last + 1 :] < value[best]]
    now = start_of(menus, options, -np.inf).distortion
    floor = now + float(lower[0] if len(lower) else value[best])
    return start_of(menus, _traced(options, swaps, taken, best, step), floor)


def _traced(
    options: Int64[np.ndarray, "menu"],
    swaps: Sequence[_Swap],
    taken: Int16[np.ndarray, "swap state"],
    state: int,
    step: int,
) -> Int64[np.ndarray, "menu"]:
    """The options whose changes lead to a state."""
    changed = options.copy()
    for index in range(len(swaps) - 1, -1, -1):
        option = int(taken[index, state])
        if option >= 0:
            swap = swaps[index]
            changed[swap.unit] = swap.options[option]
            state -= -(-int(swap.bytes[option]) // step)
    return changed


def _swaps(menus: Sequence[Menu], options: Int64[np.ndarray, "menu"], gap: int) -> list[_Swap]:
    swaps: list[_Swap] = []
    for unit, (menu, option) in enumerate(zip(menus, options.tolist(), strict=True)):
        change = menu.bytes - menu.bytes[option]
        near = np.flatnonzero((np.abs(change) <= gap) & (change != 0))
        if len(near):
            distortion = menu.distortion[near] - menu.distortion[option]
            swaps.append(_Swap(unit=unit, options=near, bytes=change[near], distortion=distortion))
    return swaps


def _with_swap(
    value: Float64[np.ndarray, "state"], taken: Int16[np.ndarray, "state"], swap: _Swap, step: int
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
