from __future__ import annotations

import numpy as np
import pytest
from allocation_problems import FORMATS, natural_problem, problem_of

from guidedq.passes.allocate import ArticleAllocator, UniformAllocator
from guidedq.passes.allocate.article import sensitivity_shares
from guidedq.passes.allocate.units import units_of

WIDTHS = (FORMATS[0], FORMATS[2], FORMATS[3], FORMATS[4])


def literal_widths(levels: list[float], limit_share: float) -> list[int]:
    fall = 4.0 ** -np.array([2.0, 3.0, 4.0, 5.0])
    problem = problem_of([level * np.tile(fall, (3, 1)) for level in levels], [WIDTHS] * len(levels), side_bytes=0)
    limit = int(problem.smallest + limit_share * (problem.largest - problem.smallest))
    allocation = problem.solve(ArticleAllocator(literal=True), limit)
    return [next(iter(site.used)).bits for site in allocation.sites.values()]


def test_widths_grow_with_the_share_between_the_smallest_and_the_largest() -> None:
    assert literal_widths([1.0, 1.0, 1.0], 0.0) == [2, 2, 2]
    assert literal_widths([1.0, 3.0, 2.0], 1.0) == [5, 5, 5]
    widths = literal_widths([1.0, 2.0, 3.0], 0.67)
    assert widths == sorted(widths)
    assert widths[0] < widths[2]


def test_a_dominant_unit_is_widened_to_the_largest_before_any_other() -> None:
    assert literal_widths([1.0, 1000.0, 1.0], 0.34) == [2, 5, 2]


def test_shares_do_not_depend_on_which_format_is_the_smallest() -> None:
    fall = {format: 4.0**-format.bits for format in FORMATS}
    offered = [FORMATS[0:1] + FORMATS[3:5], FORMATS[3:5]]
    problem = problem_of(
        [np.array([[level * fall[f] for f in o]]) for level, o in zip((1.0, 3.0), offered, strict=True)], offered
    )
    shares = sensitivity_shares(units_of(problem.graph, problem.curves, problem.footprint))
    np.testing.assert_allclose(shares, [0.25, 0.75], rtol=1e-6)


def test_sites_without_any_distortion_stay_at_the_smallest_width() -> None:
    problem = problem_of([np.zeros((2, 4))] * 2, [WIDTHS] * 2)
    assert problem.solve(ArticleAllocator(), problem.largest).bytes == problem.smallest


@pytest.mark.parametrize("seed", range(4))
def test_the_guarded_rule_is_never_worse_than_the_bare_one(seed: int) -> None:
    problem = natural_problem(seed, sites=6, rows=3, segments=1)
    for limit in problem.limits(10):
        guarded, bare = (problem.solve(ArticleAllocator(literal=literal), limit) for literal in (False, True))
        assert bare.bytes <= limit
        assert guarded.distortion <= bare.distortion * (1 + 1e-12)
        assert guarded.distortion <= problem.solve(UniformAllocator(), limit).distortion * (1 + 1e-12)
