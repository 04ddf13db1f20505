"""What every allocator promises. A new allocator is one line in `ALLOCATORS`."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from allocation_problems import Problem, natural_problem, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from guidedq.errors import BudgetError
from guidedq.passes.allocate import ArticleAllocator, ExactAllocator, LagrangianAllocator, UniformAllocator
from guidedq.stages import AbstractAllocator

ALLOCATORS: dict[str, AbstractAllocator] = {
    "uniform": UniformAllocator(),
    "article": ArticleAllocator(),
    "lagrangian": LagrangianAllocator(),
    "lagrangian by site": LagrangianAllocator(granularity="site"),
    "lagrangian without shrinkage": LagrangianAllocator(shrinkage=False),
    "exact": ExactAllocator(),
}
ROUNDING = 1e-12
"""Relative: a float64 sum of some dozen terms depends this much on their order, the comparison of two sums likewise."""

every_allocator = pytest.mark.parametrize("allocator", ALLOCATORS.values(), ids=ALLOCATORS.keys())


@every_allocator
@given(problem=problems(), share=st.floats(0.0, 1.1))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_an_allocation_is_within_the_budget_to_the_byte_and_counts_itself_rightly(
    allocator: AbstractAllocator, problem: Problem, share: float
) -> None:
    limit = int(problem.smallest + share * (problem.largest - problem.smallest))
    allocation = problem.solve(allocator, limit)
    assert allocation.bytes <= limit
    assert list(allocation.sites) == [site.name for site in problem.graph.sites]
    for name, site in allocation.sites.items():
        counted, distortion = counted_row_by_row(problem, name, site.choice.tolist())
        assert site.bytes == counted
        assert site.distortion == pytest.approx(distortion, rel=1e-9, abs=0.0)
        assert len(site.used) <= problem.footprint.sites[name].segments
    for group in problem.graph.fused:
        formats = {format for name in group for format in allocation.sites[name].used}
        assert len(formats) == 1


@every_allocator
def test_several_limits_at_once_give_what_each_gives_alone(allocator: AbstractAllocator) -> None:
    problem = natural_problem(seed=3, sites=3, rows=4, segments=2)
    limits = problem.limits(5)[::-1]
    together = allocator.allocate(problem.graph, problem.curves, problem.footprint, limits)
    assert [one.digest for one in together] == [problem.solve(allocator, limit).digest for limit in limits]
    with pytest.raises(BudgetError):
        allocator.allocate(problem.graph, problem.curves, problem.footprint, [limits[0], problem.smallest - 1])


@every_allocator
@given(problem=problems())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_distortion_never_rises_with_the_budget_and_is_never_above_the_best_uniform_format(
    allocator: AbstractAllocator, problem: Problem
) -> None:
    previous = float("inf")
    for limit in problem.limits(9):
        distortion = problem.solve(allocator, limit).distortion
        assert distortion <= previous * (1 + ROUNDING)
        assert distortion <= problem.solve(UniformAllocator(), limit).distortion * (1 + ROUNDING)
        previous = distortion


@every_allocator
@pytest.mark.parametrize("segments", [1, 3])
def test_distortion_never_rises_from_one_byte_to_the_next(allocator: AbstractAllocator, segments: int) -> None:
    problem = natural_problem(5, sites=2, rows=3, segments=segments, formats=4, noise=0.4)
    limits = range(problem.smallest, problem.largest + 2)
    distortions = [problem.solve(allocator, limit).distortion for limit in limits]
    assert all(after <= before * (1 + ROUNDING) for before, after in pairwise(distortions))


@every_allocator
def test_the_same_problem_gives_the_same_allocation_and_is_left_as_it_was(allocator: AbstractAllocator) -> None:
    problem = natural_problem(1, sites=3, rows=5, formats=4, noise=0.3)
    before = {name: curve.distortion.clone() for name, curve in problem.curves.items()}
    limit = problem.limits(7)[3]
    assert problem.solve(allocator, limit).digest == problem.solve(allocator, limit).digest
    assert all(torch.equal(before[name], curve.distortion) for name, curve in problem.curves.items())


@every_allocator
@given(problem=problems())
@settings(max_examples=10, deadline=None, derandomize=True)
def test_the_smallest_file_is_possible_and_one_byte_less_names_the_feasible_range(
    allocator: AbstractAllocator, problem: Problem
) -> None:
    assert problem.solve(allocator, problem.smallest).bytes == problem.smallest
    with pytest.raises(BudgetError, match=f"smallest file, {problem.smallest} bytes.*largest takes {problem.largest}"):
        problem.solve(allocator, problem.smallest - 1)


def counted_row_by_row(problem: Problem, name: str, choice: list[int]) -> tuple[int, float]:
    """Bytes and distortion of a site, the slow and obvious way."""
    footprint, curve = problem.footprint.sites[name], problem.curves[name]
    total = footprint.site_bytes
    distortion = 0.0
    for row, index in enumerate(choice):
        total += footprint.row_bytes[index]
        distortion += float(curve.distortion[row, index])
    total += sum(footprint.segment_bytes[index] for index in set(choice))
    if len(set(choice)) > 1:
        total += footprint.mixed_bytes + (len(choice) * footprint.mixed_row_bits + 7) // 8
    return total, distortion
