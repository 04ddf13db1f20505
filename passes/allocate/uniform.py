"""Uniform allocation: the same format everywhere, and what that means where a site does not offer it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.footprint import Footprint
from guidedq.errors import BudgetError, RecipeError
from guidedq.ir.graph import Graph
from guidedq.quant.formats import AffineFormat, Format
from guidedq.stages import AbstractAllocator

from .units import Choice, Unit, assemble, check_feasible, units_of


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UniformAllocator(AbstractAllocator):
    """The format that, used everywhere, fits with least distortion; of equals the one with fewer bytes.

    A site that does not offer it takes the nearest format that is not larger (`uniform_plans` says how).

    Attributes:
        bits: Only formats of this width; 0 for any.
        group_size: Only affine formats with this group size (0 is one group per row); -1 for any.
    """

    bits: int = 0
    group_size: int = -1

    def allocate(
        self, graph: Graph, curves: Mapping[str, SiteCurve], footprint: Footprint, limits: Sequence[int]
    ) -> tuple[Allocation, ...]:
        """The best uniform allocations.

        Raises:
            BudgetError: none fits in a limit.
            RecipeError: no site offers a format with these bits and this group size.
        """
        units = units_of(graph, curves, footprint)
        check_feasible(units, footprint.base_bytes, limits)
        plans = uniform_plans(units, footprint.base_bytes)
        if self.bits or self.group_size >= 0:
            plans = [plan for plan in plans if plan.format is not None and self._admits(plan.format)]
            self._check_some(plans, units)
        chosen = [self._best(plans, limit) for limit in limits]
        return tuple(assemble(units, plan.choices(units), graph, footprint) for plan in chosen)

    def _best(self, plans: Sequence[UniformPlan], limit_bytes: int) -> UniformPlan:
        plan = best_plan(plans, limit_bytes)
        if plan is None:
            smallest = min(plan.bytes for plan in plans)
            raise BudgetError(
                f"{limit_bytes} bytes is below the smallest uniform file with {self._asked()}, {smallest} bytes. "
                f"Raise the budget, or allow other formats."
            )
        return plan

    def _admits(self, format: Format) -> bool:
        if self.group_size >= 0 and (not isinstance(format, AffineFormat) or format.group_size != self.group_size):
            return False
        return not self.bits or format.bits == self.bits

    def _asked(self) -> str:
        bits = f"{self.bits} bits" if self.bits else "any bits"
        return bits + (f" in groups of {self.group_size}" if self.group_size >= 0 else "")

    def _check_some(self, plans: Sequence[UniformPlan], units: Sequence[Unit]) -> None:
        if not plans:
            offered = ", ".join(map(str, dict.fromkeys(format for unit in units for format in unit.formats)))
            raise RecipeError(f"no site offers a format with {self._asked()}. The formats: {offered}.")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UniformPlan:
    """One format everywhere.

    Attributes:
        format: The format; `None` for every unit's smallest.
        indices: Which of its own formats each unit takes.
        bytes: Of the whole file.
        distortion: Sum over all units.
    """

    format: Format | None
    indices: tuple[int, ...]
    bytes: int
    distortion: float

    def choices(self, units: Sequence[Unit]) -> list[Choice]:
        """The plan as a choice for every unit."""
        return [unit.single(index) for unit, index in zip(units, self.indices, strict=True)]


def uniform_plans(units: Sequence[Unit], base_bytes: int) -> list[UniformPlan]:
    """All uniform allocations: one for every format that some unit offers, and the smallest.

    A unit that does not offer the format takes the one of most bytes among those that are not larger, of equals the
    first it lists; if all are larger, its smallest. Bytes are here what the formats themselves count, so that the plans
    do not depend on how a backend pads. The last plan has every unit in its smallest format by the backend's count:
    where units offer different formats, no single format may be as small.
    """
    plans: list[UniformPlan] = []
    for format in dict.fromkeys(format for unit in units for format in unit.formats):
        indices = tuple(_nearest_not_larger(unit, format) for unit in units)
        plans.append(_plan(format, indices, units, base_bytes))
    smallest = tuple(unit.single_bytes.index(min(unit.single_bytes)) for unit in units)
    return [*plans, _plan(None, smallest, units, base_bytes)]


def best_plan(plans: Sequence[UniformPlan], limit_bytes: int) -> UniformPlan | None:
    """The plan of least distortion that fits, of equals the one with fewer bytes; `None` if none fits."""
    fitting = [plan for plan in plans if plan.bytes <= limit_bytes]
    return min(fitting, key=lambda plan: (plan.distortion, plan.bytes), default=None)


def no_worse_than_uniform(
    choices: Sequence[Choice], units: Sequence[Unit], graph: Graph, footprint: Footprint, limit_bytes: int
) -> Allocation:
    """These choices, or the best uniform plan that fits where that has less distortion."""
    allocation = assemble(units, choices, graph, footprint)
    plan = best_plan(uniform_plans(units, footprint.base_bytes), limit_bytes)
    if plan is None or plan.distortion >= allocation.distortion:
        return allocation
    return assemble(units, plan.choices(units), graph, footprint)


def _plan(format: Format | None, indices: tuple[int, ...], units: Sequence[Unit], base_bytes: int) -> UniformPlan:
    taken = list(zip(units, indices, strict=True))
    return UniformPlan(
        format=format,
        indices=indices,
        bytes=base_bytes + sum(unit.single_bytes[index] for unit, index in taken),
        distortion=sum(unit.single_distortion[index] for unit, index in taken),
    )


def _nearest_not_larger(unit: Unit, format: Format) -> int:
    if format in unit.formats:
        return unit.formats.index(format)
    ceiling = unit.nominal_bytes(format)
    sizes = [unit.nominal_bytes(offered) for offered in unit.formats]
    fitting = [size for size in sizes if size <= ceiling]
    return sizes.index(max(fitting) if fitting else min(sizes))
