"""The article's rule: a unit's width grows linearly with its share of the total sensitivity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64, Int64

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.footprint import Footprint
from guidedq.ir.graph import Graph
from guidedq.stages import AbstractAllocator

from .uniform import no_worse_than_uniform
from .units import Choice, Unit, assemble, check_feasible, units_of

FALL_PER_BIT = 4.0
"""One more bit halves the grid's step, and distortion is quadratic in the step."""

NO_STEP = 2**62
"""Stands for the size of a step where there is none: above every file, and in 64 bits."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ArticleAllocator(AbstractAllocator):
    """`b_i = b_min + (b_max - b_min) * kappa * share_i`, clipped to `b_min..b_max`, one width for every unit.

    `share_i` is the unit's sensitivity over the sum of all. The article sums the guidance map over the unit's weights;
    here the sensitivity is the unit's measured distortion in its smallest format, freed of that format's width by the
    fourfold fall per bit. The article's own kappa is 1: the shares sum to one, so nearly all widths stay at `b_min` and
    no budget can be met. Here kappa is as large as the limit allows. Widths are rounded down to what the unit
    offers; where several formats have a width, the one with least distortion for its bytes is taken. What is left over
    widens units one step each, in order of share, until one does not fit.

    The rule knows nothing of how much distortion a width leaves, so on its own it may be worse than a uniform plan, or
    get worse when the limit rises. Unless `literal` is set, the result is therefore the best that the rule gives for
    this limit or any smaller one (a falling function of the limit, as the choice only grows), or the best uniform plan
    where that is better.

    Attributes:
        literal: The bare rule, for comparisons: may be worse than uniform, and may rise with the limit.
    """

    literal: bool = False

    def allocate(
        self, graph: Graph, curves: Mapping[str, SiteCurve], footprint: Footprint, limits: Sequence[int]
    ) -> tuple[Allocation, ...]:
        """The allocations that the rule gives.

        Raises:
            BudgetError: even the smallest allocation is larger than a limit.
        """
        units = units_of(graph, curves, footprint)
        check_feasible(units, footprint.base_bytes, limits)
        shares = sensitivity_shares(units)
        ladders = [_ladder(unit) for unit in units]
        found: list[Allocation] = []
        for limit in limits:
            levels = _rule(ladders, shares, units, limit - footprint.base_bytes, literal=self.literal)
            choices: list[Choice] = [
                unit.single(ladder[level]) for unit, ladder, level in zip(units, ladders, levels, strict=True)
            ]
            found.append(
                assemble(units, choices, graph, footprint)
                if self.literal
                else no_worse_than_uniform(choices, units, graph, footprint, limit)
            )
        return tuple(found)


def sensitivity_shares(units: Sequence[Unit]) -> Float64[np.ndarray, "unit"]:
    """Each unit's share of the total sensitivity; equal shares where nothing is sensitive."""
    sensitivity = np.zeros(len(units))
    for index, unit in enumerate(units):
        smallest = unit.single_bytes.index(min(unit.single_bytes))
        sensitivity[index] = unit.single_distortion[smallest] * FALL_PER_BIT ** unit.formats[smallest].bits
    total = sensitivity.sum()
    return sensitivity / total if total > 0.0 else np.full(len(units), 1.0 / len(units))


def _ladder(unit: Unit) -> list[int]:
    """One format for each width, widths rising, from the unit's smallest format on; each larger than the one before."""
    parameters = sum(rows * columns for rows, columns in zip(unit.rows, unit.columns, strict=True))

    def merit(index: int) -> tuple[float, int]:
        bits_per_weight = 8 * unit.single_bytes[index] / parameters
        return unit.single_distortion[index] * FALL_PER_BIT**bits_per_weight, unit.single_bytes[index]

    smallest = unit.single_bytes.index(min(unit.single_bytes))
    ladder = [smallest]
    for width in sorted({format.bits for format in unit.formats}):
        if width <= unit.formats[smallest].bits:
            continue
        best = min((index for index, format in enumerate(unit.formats) if format.bits == width), key=merit)
        if unit.single_bytes[best] > unit.single_bytes[ladder[-1]]:
            ladder.append(best)
    return ladder


def _rule(
    ladders: Sequence[Sequence[int]],
    shares: Float64[np.ndarray, "unit"],
    units: Sequence[Unit],
    limit_bytes: int,
    *,
    literal: bool,
) -> list[int]:
    """The rung that each unit stands on: for the largest kappa that fits, or for the best that fits."""
    levels = np.zeros(len(units), dtype=np.int64)
    slack = limit_bytes - sum(unit.single_bytes[ladder[0]] for unit, ladder in zip(units, ladders, strict=True))
    loss, best_loss, best_levels = 0.0, np.inf, levels
    steps, gains = _next_steps(levels, ladders, units)
    by_share = np.argsort(-shares, kind="stable")
    for event in [*_widenings(ladders, shares, units), None]:
        gap = NO_STEP if event is None else int(steps[event])
        if not literal or gap > slack:
            widened = by_share[steps[by_share] < gap]
            fitting = int(np.searchsorted(np.cumsum(steps[widened]), slack, side="right"))
            losses = loss - np.concatenate([[0.0], np.cumsum(gains[widened[:fitting]])])
            count = fitting if literal else int(losses.argmin())
            if literal or losses[count] < best_loss:
                best_loss, best_levels = float(losses[count]), levels.copy()
                best_levels[widened[:count]] += 1
        if event is None or gap > slack:
            break
        slack, loss = slack - gap, loss - float(gains[event])
        levels[event] += 1
        steps[event], gains[event] = _next_step(int(levels[event]), ladders[event], units[event])
    return best_levels.tolist()


def _widenings(
    ladders: Sequence[Sequence[int]], shares: Float64[np.ndarray, "unit"], units: Sequence[Unit]
) -> list[int]:
    """Which unit goes up a rung, in the order in which a growing kappa makes it; never those without a share."""
    widths = [format.bits for unit in units for format in unit.formats]
    lowest, span = min(widths), max(widths) - min(widths)
    events: list[tuple[float, int, int]] = []
    for index, (unit, ladder, share) in enumerate(zip(units, ladders, shares.tolist(), strict=True)):
        if share > 0.0:
            for level, rung in enumerate(ladder[1:], start=1):
                events.append(((unit.formats[rung].bits - lowest) / (span * share), index, level))
    return [index for _, index, _ in sorted(events)]


def _next_steps(
    levels: Int64[np.ndarray, "unit"], ladders: Sequence[Sequence[int]], units: Sequence[Unit]
) -> tuple[Int64[np.ndarray, "unit"], Float64[np.ndarray, "unit"]]:
    pairs = [_next_step(*unit) for unit in zip(levels.tolist(), ladders, units, strict=True)]
    return np.array([size for size, _ in pairs], dtype=np.int64), np.array([gain for _, gain in pairs])


def _next_step(level: int, ladder: Sequence[int], unit: Unit) -> tuple[int, float]:
    """Bytes that the next rung adds and distortion that it removes."""
    if level + 1 == len(ladder):
        return NO_STEP, 0.0
    now, then = ladder[level], ladder[level + 1]
    return unit.single_bytes[then] - unit.single_bytes[now], unit.single_distortion[now] - unit.single_distortion[then]
