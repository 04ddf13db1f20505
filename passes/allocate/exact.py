"""Exact allocation by dynamic programming, for small problems: the oracle that other allocators are tested against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import final

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.footprint import Footprint
from guidedq.errors import BudgetError
from guidedq.ir.graph import Graph
from guidedq.stages import AbstractAllocator

from .hull import pareto_front
from .units import Unit, assemble, check_feasible, units_of

LARGEST_MERGE = 2**22
"""Combinations compared in one step: some 100 MB. More would take minutes for a whole problem."""
LARGEST_CHOICES = 2**26
"""Bytes of row choices that are kept for the combinations of one step."""
MOST_STEPS = 2**14
"""Rows times sets of formats that they may be mixed from, over all units: each is a step of some milliseconds."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ExactAllocator(AbstractAllocator):
    """The least distortion that any allocation within the limit has, all side information counted.

    Keeps, row by row and then unit by unit, every combination that no other beats in both bytes and distortion; for a
    unit whose rows may be mixed it does so for every set of formats that may be mixed. Of equal distortions it takes
    the fewest bytes. The optimum over a set which grows with the limit never rises and is never above a uniform plan.
    """

    def allocate(
        self, graph: Graph, curves: Mapping[str, SiteCurve], footprint: Footprint, limits: Sequence[int]
    ) -> tuple[Allocation, ...]:
        """The best allocations.

        Raises:
            BudgetError: even the smallest allocation is larger than a limit, or the problem is too large.
        """
        units = units_of(graph, curves, footprint)
        check_feasible(units, footprint.base_bytes, limits)
        _check_steps(units)
        ends = np.cumsum([sum(unit.rows) for unit in units])[:-1]
        solved = (_best(units, limit - footprint.base_bytes) for limit in limits)
        return tuple(assemble(units, np.split(best, ends), graph, footprint) for best in solved)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Front:
    """Combinations that no other beats, bytes rising and distortion falling, with the format of every row so far."""

    bytes: Int64[np.ndarray, "point"]
    distortion: Float64[np.ndarray, "point"]
    choices: UInt8[np.ndarray, "point row"]


def _best(units: Sequence[Unit], available: int) -> UInt8[np.ndarray, "row"]:
    """The formats of all rows of all units that lose least in so many bytes."""
    rest = sum(min(unit.single_bytes) for unit in units)
    front = _single_point(0)
    for unit in units:
        rest -= min(unit.single_bytes)
        where = ", ".join(unit.names)
        options = _unit_front(unit, available - rest - int(front.bytes[0]), where)
        front = _merged(front, options, available - rest, where)
    return front.choices[-1]


def _check_steps(units: Sequence[Unit]) -> None:
    """Refuse at once what would run for very long."""
    steps = sum(
        sum(unit.rows) * sum(comb(len(unit.formats), size) for size in range(2, unit.segments + 1)) for unit in units
    )
    if steps > MOST_STEPS:
        raise BudgetError(
            f"the problem is too large for the exact allocator: {steps} steps (rows, times the sets of formats that a "
            f"site may mix), at most {MOST_STEPS}. Use the lagrangian allocator, or fewer formats."
        )


def _unit_front(unit: Unit, limit_bytes: int, where: str) -> _Front:
    """All undominated options of one unit in so many bytes."""
    rows = sum(unit.rows)
    singles = _Front(
        bytes=np.array(unit.single_bytes, dtype=np.int64),
        distortion=np.array(unit.single_distortion),
        choices=np.repeat(np.arange(len(unit.formats), dtype=np.uint8)[:, None], rows, axis=1),
    )
    return _pruned([singles, *_mixtures(unit, limit_bytes, where)], limit_bytes)


def _mixtures(unit: Unit, limit_bytes: int, where: str) -> Iterator[_Front]:
    """For each set of two or more formats that may be mixed, the undominated ways to spread the rows over it.

    The side information of the whole set is counted. Where not all of it is used, a smaller set has the same rows for
    fewer bytes.
    """
    if unit.segments < 2:
        return
    assert unit.footprint is not None
    row_bytes = np.array(unit.footprint.row_bytes, dtype=np.int64)
    for size in range(2, unit.segments + 1):
        for mixed in combinations(range(len(unit.formats)), size):
            formats = np.array(mixed, dtype=np.uint8)
            one_row_each = dict.fromkeys(mixed, 1)
            rows = sum(unit.rows)
            side_bytes = unit.footprint.bytes({**one_row_each, mixed[0]: rows - size + 1}) - int(
                row_bytes[formats].sum() + (rows - size) * row_bytes[mixed[0]]
            )
            front = _single_point(side_bytes)
            smallest = int(row_bytes[formats].min())
            for row in range(rows):
                options = _Front(
                    bytes=row_bytes[formats],
                    distortion=unit.distortion[formats, row].astype(np.float64),
                    choices=formats[:, None],
                )
                front = _merged(front, options, limit_bytes - (rows - row - 1) * smallest, where)
            yield front


def _merged(front: _Front, options: _Front, limit_bytes: int, where: str) -> _Front:
    """Every point with every option, the beaten ones left out."""
    pairs = len(front.bytes) * len(options.bytes)
    if pairs > LARGEST_MERGE:
        raise BudgetError(
            f"the problem is too large for the exact allocator: {pairs} combinations to compare at {where}, "
            f"at most {LARGEST_MERGE}. Use the lagrangian allocator, or fewer formats."
        )
    sizes = np.add.outer(front.bytes, options.bytes).ravel()
    distortion = np.add.outer(front.distortion, options.distortion).ravel()
    kept = pareto_front(sizes, distortion)
    kept = kept[sizes[kept] <= limit_bytes]
    rows = front.choices.shape[1] + options.choices.shape[1]
    if len(kept) * rows > LARGEST_CHOICES:
        raise BudgetError(
            f"the problem is too large for the exact allocator: {len(kept)} combinations of {rows} rows at {where}, "
            f"at most {LARGEST_CHOICES} row formats in all. Use the lagrangian allocator."
        )
    before, added = np.divmod(kept, len(options.bytes))
    choices = np.concatenate([front.choices[before], options.choices[added]], axis=1)
    return _Front(bytes=sizes[kept], distortion=distortion[kept], choices=choices)


def _pruned(fronts: Sequence[_Front], limit_bytes: int) -> _Front:
    """One front of many."""
    sizes = np.concatenate([front.bytes for front in fronts])
    distortion = np.concatenate([front.distortion for front in fronts])
    choices = np.concatenate([front.choices for front in fronts])
    kept = pareto_front(sizes, distortion)
    kept = kept[sizes[kept] <= limit_bytes]
    return _Front(bytes=sizes[kept], distortion=distortion[kept], choices=choices[kept])


def _single_point(size: int) -> _Front:
    return _Front(
        bytes=np.array([size], dtype=np.int64), distortion=np.zeros(1), choices=np.zeros((1, 0), dtype=np.uint8)
    )
