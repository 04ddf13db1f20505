from __future__ import annotations

import numpy as np
import pytest
from allocation_problems import FORMATS, natural_problem, problem_of

from guidedq.errors import BudgetError, CalibrationError, FormatError, RecipeError
from guidedq.passes.allocate import UniformAllocator
from guidedq.quant.formats import AffineFormat


def test_the_best_format_that_fits_is_used_everywhere() -> None:
    problem = natural_problem(0, sites=3, rows=4)
    sites = problem.footprint.sites.values()
    for limit in problem.limits(20):
        losses: list[float] = []
        for index in range(len(FORMATS)):
            if problem.footprint.base_bytes + sum(site.bytes({index: 4}) for site in sites) <= limit:
                losses.append(sum(float(curve.distortion[:, index].sum()) for curve in problem.curves.values()))
        allocation = problem.solve(UniformAllocator(), limit)
        assert allocation.distortion == pytest.approx(min(losses))
        assert len({format for site in allocation.sites.values() for format in site.used}) == 1


def test_equal_distortions_take_the_fewer_bytes() -> None:
    problem = problem_of([np.ones((3, 7))] * 2, [FORMATS] * 2)
    assert problem.solve(UniformAllocator(), problem.largest).bytes == problem.smallest


def test_a_site_without_the_format_takes_the_nearest_that_is_not_larger() -> None:
    two, _, three, four, five, *_ = FORMATS
    falling = np.array([[9.0, 4.0, 1.0]])
    problem = problem_of([falling, falling, falling[:, 1:]], [(two, three, five), (two, four, five), (four, five)])
    allocation = problem.solve(UniformAllocator(bits=4), problem.largest)
    assert [list(site.used) for site in allocation.sites.values()] == [[three], [four], [four]]
    allocation = problem.solve(UniformAllocator(bits=3), problem.largest)
    assert [list(site.used) for site in allocation.sites.values()] == [[three], [two], [four]]


def test_bits_and_group_size_restrict_the_formats() -> None:
    problem = natural_problem(0)
    for bits, group_size in ((3, -1), (0, 32), (3, 0), (16, -1)):
        allocation = problem.solve(UniformAllocator(bits=bits, group_size=group_size), problem.largest)
        for site in allocation.sites.values():
            (format,) = site.used
            assert bits in (0, format.bits)
            assert group_size < 0 or (isinstance(format, AffineFormat) and format.group_size == group_size)


def test_formats_that_nobody_offers_or_that_do_not_fit_are_named() -> None:
    problem = natural_problem(0)
    with pytest.raises(RecipeError, match=r"no site offers a format with 7 bits.*bits=2"):
        problem.solve(UniformAllocator(bits=7), problem.largest)
    with pytest.raises(BudgetError, match="smallest uniform file with 8 bits"):
        problem.solve(UniformAllocator(bits=8), problem.smallest)


def test_fused_sites_without_a_common_format_are_named() -> None:
    problem = problem_of([np.ones((2, 1))] * 2, [FORMATS[:1], FORMATS[1:2]], fused=[(0, 1)])
    with pytest.raises(FormatError, match="fuses site0, site1"):
        problem.solve(UniformAllocator(), 10**6)


def test_a_distortion_that_is_not_finite_is_refused_with_its_site() -> None:
    problem = problem_of([np.ones((2, 1)), np.array([[np.nan], [1.0]])], [FORMATS[:1]] * 2)
    with pytest.raises(CalibrationError, match="site1"):
        problem.solve(UniformAllocator(), 10**6)
