from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from allocation_problems import FORMATS, Problem, natural_problem, problem_of

from guidedq.errors import BudgetError
from guidedq.passes.allocate import ExactAllocator


def exhaustive(problem: Problem, limit: int) -> float:
    """The least distortion over every format of every row."""
    fronts: list[list[tuple[int, float]]] = []
    for name, curve in problem.curves.items():
        footprint = problem.footprint.sites[name]
        found: list[tuple[int, float]] = []
        for choice in product(range(len(curve.formats)), repeat=len(curve.distortion)):
            if len(set(choice)) <= footprint.segments:
                counts = {index: choice.count(index) for index in set(choice)}
                loss = sum(float(curve.distortion[row, index]) for row, index in enumerate(choice))
                found.append((footprint.bytes(counts), loss))
        fronts.append(found)
    combinations = product(*fronts)
    totals = [(sum(size for size, _ in one), sum(loss for _, loss in one)) for one in combinations]
    return min(loss for size, loss in totals if size + problem.footprint.base_bytes <= limit)


@pytest.mark.parametrize("segments", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_is_better_among_all_allocations(seed: int, segments: int) -> None:
    problem = natural_problem(seed, sites=2, rows=3, formats=4, segments=segments)
    for limit in problem.limits(8):
        assert problem.solve(ExactAllocator(), limit).distortion == pytest.approx(exhaustive(problem, limit))


def test_side_information_that_costs_more_than_it_gains_is_not_bought() -> None:
    distortions = [np.array([[8.0, 1.0], [9.0, 1.0]])]
    cheap = problem_of(distortions, [(FORMATS[0], FORMATS[3])], segments=2, side_bytes=0)
    dear = problem_of(distortions, [(FORMATS[0], FORMATS[3])], segments=2, side_bytes=200)
    for problem, formats_used in ((cheap, 2), (dear, 1)):
        limit = problem.largest - 1
        assert len(problem.solve(ExactAllocator(), limit).sites["site0"].used) == formats_used


def test_a_problem_that_is_too_large_names_the_bound_and_the_way_out() -> None:
    random = np.random.default_rng(0)
    problem = problem_of([random.random((300, 7)) for _ in range(3)], [FORMATS] * 3, segments=4)
    with pytest.raises(BudgetError, match=r"too large for the exact allocator.*at most \d+\. Use the lagrangian"):
        problem.solve(ExactAllocator(), problem.largest // 2)
