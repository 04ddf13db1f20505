"""Lagrangian allocation, the default: convex hulls, exchange of what is left, single rows last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.footprint import Footprint
from guidedq.ir.graph import Graph
from guidedq.stages import AbstractAllocator

from .exchange import best_stair
from .fill import fill_rows
from .menu import Menu, menu_of
from .shrinkage import shrinkage_scale
from .uniform import no_worse_than_uniform
from .units import Unit, check_feasible, units_of


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LagrangianAllocator(AbstractAllocator):
    """Least distortion within the limit, by a multiplier on the bytes (Everett 1963; Shoham and Gersho 1988).

    1. Every unit gets a menu: its single formats, and mixtures of rows at multipliers spread over its range, each from
       the few formats that pay their side information there. What is not below all else in bytes or distortion is
       dropped, so a mixture stays only if it gains more than its side information costs.
    2. The menus' convex hulls give the two solutions around the limit, dynamic programming what lies between them
       (`exchange.best_stair`).
    3. Single rows take the bytes still left (`fill.fill_rows`).
    4. The best uniform plan, should it be better.

    Distortion never rises with the limit: (2) is a fixed falling staircase, (3) stays between a stair and the next and
    only walks along one fixed sequence, (4) takes the lower of two falling functions.

    Attributes:
        granularity: `row` lets the rows of one site have different formats where the backend can, `site` does not.
        shrinkage: Whether rows' noisy sensitivities are drawn toward their site's mean before rows are mixed; reported
            distortions are never shrunk.
    """

    granularity: Literal["site", "row"] = "row"
    shrinkage: bool = True

    def allocate(
        self, graph: Graph, curves: Mapping[str, SiteCurve], footprint: Footprint, limit_bytes: int
    ) -> Allocation:
        """The allocation of least distortion that is found in `limit_bytes`.

        Raises:
            BudgetError: even the smallest allocation is larger.
        """
        units = units_of(graph, curves, footprint)
        check_feasible(units, footprint.base_bytes, limit_bytes)
        menus = [self._menu(unit) for unit in units]
        available = limit_bytes - footprint.base_bytes
        stair = best_stair(menus, available)
        choices = [menu.choice(option) for menu, option in zip(menus, stair.options, strict=True)]
        allowance = stair.distortion - stair.next_distortion
        filled = fill_rows(menus, choices, available - stair.bytes, allowance)
        return no_worse_than_uniform(filled, units, graph, footprint, limit_bytes)

    def _menu(self, unit: Unit) -> Menu:
        mixed = self.granularity == "row" and unit.segments > 1
        if mixed and self.shrinkage:
            scale = shrinkage_scale(unit.distortion, unit.noise)
        else:
            scale = np.ones(unit.distortion.shape[1], dtype=np.float32)
        return menu_of(unit, scale, mixed=mixed)
