"""Lagrangian allocation, the default: convex hulls, exchange of what is left, single rows last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.footprint import Footprint
from guidedq.ir.graph import Graph
from guidedq.stages import AbstractAllocator

from .exchange import exchanged_start
from .fill import fill_rows
from .menu import Menu, menu_of
from .path import Path, Start, path_of, path_starts
from .shrinkage import shrinkage_scale
from .uniform import no_worse_than_uniform
from .units import Choice, Unit, check_feasible, units_of


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LagrangianAllocator(AbstractAllocator):
    """Least distortion within the limit, by a multiplier on the bytes (Everett 1963; Shoham and Gersho 1988).

    1. Every unit gets a menu: its single formats, and mixtures of rows at multipliers spread over its range, each from
       the few formats that pay their side information there. What is not below all else in bytes or distortion is
       dropped, so a mixture stays only if it gains more than its side information costs.
    2. The menus' convex hulls give the solutions around the limit (`path`), dynamic programming over whole options what
       lies between them (`exchange`).
    3. From each of these starts single rows take the bytes still left (`fill`); the best result counts.
    4. The best uniform plan, should it be better.

    Distortion never rises with the limit. The starts and the sequence of upgrades from each do not depend on the limit;
    a larger limit only goes further along them. A start is given up only for one with at most the distortion of its
    floor, below which it never goes. So each is a falling function of the limit, and (3) and (4) take the lowest.

    Attributes:
        granularity: `row` lets the rows of one site have different formats where the backend can, `site` does not.
        shrinkage: Whether rows' noisy sensitivities are drawn toward their site's mean before rows are mixed; reported
            distortions are never shrunk.
    """

    granularity: Literal["site", "row"] = "row"
    shrinkage: bool = True

    def allocate(
        self, graph: Graph, curves: Mapping[str, SiteCurve], footprint: Footprint, limits: Sequence[int]
    ) -> tuple[Allocation, ...]:
        """The allocations of least distortion that are found; the menus are made once for all limits.

        Raises:
            BudgetError: even the smallest allocation is larger than a limit.
        """
        units = units_of(graph, curves, footprint)
        check_feasible(units, footprint.base_bytes, limits)
        menus = [self._menu(unit) for unit in units]
        path = path_of(menus)
        found: list[Allocation] = []
        for limit in limits:
            available = limit - footprint.base_bytes
            filled = [self._filled(menus, start, available) for start in _starts(menus, path, available)]
            choices, _ = min(filled, key=lambda one: one[1])
            found.append(no_worse_than_uniform(choices, units, graph, footprint, limit))
        return tuple(found)

    def _filled(self, menus: Sequence[Menu], start: Start, available: int) -> tuple[list[Choice], float]:
        choices = [menu.choice(option) for menu, option in zip(menus, start.options, strict=True)]
        filled, removed = fill_rows(menus, choices, available - start.bytes, start.distortion - start.floor)
        return filled, start.distortion - removed

    def _menu(self, unit: Unit) -> Menu:
        mixed = self.granularity == "row" and unit.segments > 1
        if mixed and self.shrinkage:
            scale = shrinkage_scale(unit.distortion, unit.noise)
        else:
            scale = np.ones(unit.distortion.shape[1], dtype=np.float32)
        return menu_of(unit, scale, mixed=mixed)


def _starts(menus: Sequence[Menu], path: Path, available: int) -> list[Start]:
    """What single rows are upgraded from at this limit."""
    slack = available - sum(int(menu.bytes[0]) for menu in menus)
    passed = path.passed(slack)
    starts = path_starts(menus, path, passed)
    if passed < len(path.sizes):
        starts.append(exchanged_start(menus, path, passed, slack - int(path.sizes[:passed].sum())))
    return starts
