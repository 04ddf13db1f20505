"""Upgrades of single rows, for the bytes that whole options leave over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from .hull import steepest_upgrades
from .menu import Menu, row_bytes_of
from .units import Choice


def fill_rows(
    menus: Sequence[Menu], choices: Sequence[Choice], slack_bytes: int, allowance: float
) -> tuple[list[Choice], float]:
    """Upgrade single rows, most (shrunk) distortion per byte first, until the next one does not fit.

    Only formats that a unit uses already: another would bring side information. All rows with a useful upgrade get one
    before any gets a second. What is returned is the longest beginning of a fixed sequence which fits, so that its
    distortion never rises with the slack.

    Args:
        menus: Of all units.
        choices: What to start from; not written into.
        slack_bytes: Bytes to spend.
        allowance: Stop before more distortion than this is removed.

    Returns:
        The choices, and how much distortion was removed.
    """
    filled = list(choices)
    removed = 0.0
    while True:
        owners, targets, slopes = _upgrades(menus, filled)
        order = _first_upgrades(menus, slopes, slack_bytes)
        units, rows = owners[0][order], owners[1][order]
        sizes, gains = _effects(menus, filled, units, rows, targets[order])
        fits = (np.cumsum(sizes) <= slack_bytes) & (removed + np.cumsum(gains) <= allowance)
        count = int(fits.sum())
        for unit in np.unique(units[:count]).tolist():
            mine = np.flatnonzero(units[:count] == unit)
            filled[unit] = filled[unit].copy()
            filled[unit][rows[mine]] = targets[order][mine]
        removed += float(gains[:count].sum())
        if count < len(slopes) or not count:
            return filled, removed
        slack_bytes -= int(sizes.sum())


def _upgrades(
    menus: Sequence[Menu], choices: Sequence[Choice]
) -> tuple[
    tuple[Int64[np.ndarray, "upgrade"], Int64[np.ndarray, "upgrade"]],
    UInt8[np.ndarray, "upgrade"],
    Float64[np.ndarray, "upgrade"],
]:
    """The best upgrade of every row that has one: (unit, row), format, and slope."""
    units: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    rows: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    targets: list[np.ndarray] = [np.zeros(0, dtype=np.uint8)]
    slopes: list[np.ndarray] = [np.zeros(0)]
    for index, (menu, choice) in enumerate(zip(menus, choices, strict=True)):
        used = np.bincount(choice, minlength=len(menu.unit.formats)) > 0
        if used.sum() < 2:
            continue
        target, slope = steepest_upgrades(row_bytes_of(menu.unit), menu.unit.distortion, choice, used)
        slope *= menu.scale
        found = np.flatnonzero(slope > 0.0)
        units.append(np.full(len(found), index))
        rows.append(found)
        targets.append(target[found])
        slopes.append(slope[found])
    return (np.concatenate(units), np.concatenate(rows)), np.concatenate(targets), np.concatenate(slopes)


def _first_upgrades(
    menus: Sequence[Menu], slopes: Float64[np.ndarray, "upgrade"], slack_bytes: int
) -> Int64[np.ndarray, "first"]:
    """The upgrades by falling slope, in graph order where slopes are equal; only as many as the slack could pay."""
    order = np.arange(len(slopes))
    cheapest = min((_cheapest_upgrade(menu) for menu in menus if menu.unit.segments > 1), default=1)
    most = slack_bytes // cheapest + 1
    if most < len(slopes):
        threshold = np.partition(slopes, len(slopes) - most)[len(slopes) - most]
        order = np.flatnonzero(slopes >= threshold)
    return order[np.argsort(-slopes[order], kind="stable")]


def _cheapest_upgrade(menu: Menu) -> int:
    """Least bytes by which two formats of a row differ; at least 1."""
    differences = np.diff(np.unique(row_bytes_of(menu.unit)))
    return int(differences.min()) if len(differences) else 1


def _effects(
    menus: Sequence[Menu],
    choices: Sequence[Choice],
    units: Int64[np.ndarray, "first"],
    rows: Int64[np.ndarray, "first"],
    targets: UInt8[np.ndarray, "first"],
) -> tuple[Int64[np.ndarray, "first"], Float64[np.ndarray, "first"]]:
    """Bytes that each upgrade takes and distortion that it removes."""
    sizes, gains = np.zeros(len(units), dtype=np.int64), np.zeros(len(units))
    for unit in np.unique(units).tolist():
        mine = np.flatnonzero(units == unit)
        before, after, row = choices[unit][rows[mine]], targets[mine], rows[mine]
        row_bytes, distortion = row_bytes_of(menus[unit].unit), menus[unit].unit.distortion
        sizes[mine] = row_bytes[after] - row_bytes[before]
        gains[mine] = distortion[before, row].astype(np.float64) - distortion[after, row]
    return sizes, gains
