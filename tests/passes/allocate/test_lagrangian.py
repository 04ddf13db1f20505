from __future__ import annotations

import numpy as np
import pytest
from allocation_problems import FORMATS, natural_problem, problem_of

from guidedq.passes.allocate import ExactAllocator, LagrangianAllocator, UniformAllocator
from guidedq.passes.allocate.menu import menu_of
from guidedq.passes.allocate.units import units_of


@pytest.mark.parametrize("segments", [1, 2, 3])
def test_it_is_within_two_percent_of_the_optimum_on_average_and_fifteen_at_worst(segments: int) -> None:
    ratios: list[float] = []
    for seed in range(4):
        problem = natural_problem(seed, sites=3, rows=5, formats=4, segments=segments)
        for limit in problem.limits(7)[1:-1]:
            best = problem.solve(ExactAllocator(), limit).distortion
            ratios.append(problem.solve(LagrangianAllocator(), limit).distortion / best)
    assert min(ratios) >= 1 - 1e-9
    assert max(ratios) < 1.15
    assert np.mean(ratios) < 1.02


def test_single_formats_are_allocated_to_the_optimum_between_two_hull_points() -> None:
    for seed in range(6):
        problem = natural_problem(seed, sites=6, rows=5, segments=1)
        for limit in problem.limits(9):
            best = problem.solve(ExactAllocator(), limit).distortion
            assert problem.solve(LagrangianAllocator(), limit).distortion <= 1.05 * best


def test_where_rows_can_mix_less_than_a_row_is_left_over() -> None:
    problem = natural_problem(3, sites=5, rows=60, segments=4)
    row = max(max(footprint.row_bytes) for footprint in problem.footprint.sites.values())
    for limit in problem.limits(30)[1:-1]:
        assert limit - problem.solve(LagrangianAllocator(), limit).bytes < row


def test_widths_per_row_beat_widths_per_site_which_beat_one_width() -> None:
    problem = natural_problem(4, sites=8, rows=60, segments=4)
    for limit in problem.limits(9)[2:-2]:
        per_row, per_site, flat = (
            problem.solve(allocator, limit).distortion
            for allocator in (LagrangianAllocator(), LagrangianAllocator(granularity="site"), UniformAllocator())
        )
        assert per_row < 0.95 * per_site
        assert per_site < 0.95 * flat


def test_rows_that_are_all_alike_are_not_mixed_for_the_price_of_a_row() -> None:
    level = 4.0 ** -np.array([8 * format.row_bytes(64) / 64 for format in FORMATS])
    problem = problem_of([np.tile(level, (6, 1))] * 3, [FORMATS] * 3, segments=4, side_bytes=5000)
    for limit in problem.limits(15):
        allocation = problem.solve(LagrangianAllocator(), limit)
        assert all(len(site.used) == 1 for site in allocation.sites.values())


def test_pure_noise_between_rows_buys_no_mixture_when_it_is_shrunk() -> None:
    random = np.random.default_rng(0)
    level = 4.0 ** -np.array([8 * format.row_bytes(64) / 64 for format in FORMATS])
    noisy = [level * random.lognormal(0, 0.5, size=(200, 1)) for _ in range(2)]
    problem = problem_of(noisy, [FORMATS] * 2, segments=4, noise=0.6)
    unit = units_of(problem.graph, problem.curves, problem.footprint)[0]
    shrunk = LagrangianAllocator()._menu(unit)  # pyright: ignore[reportPrivateUsage]
    plain = menu_of(unit, np.ones(200, dtype=np.float32), mixed=True)
    assert shrunk.alphabet.sum(1).max() == 1
    assert plain.alphabet.sum(1).max() > 1


def test_what_a_menu_says_of_an_option_is_what_its_choice_has() -> None:
    problem = natural_problem(2, sites=2, rows=3000, segments=4)
    for unit in units_of(problem.graph, problem.curves, problem.footprint):
        menu = menu_of(unit, np.ones(3000, dtype=np.float32), mixed=True)
        assert len(menu.bytes) > 20
        for option in range(len(menu.bytes)):
            choice = menu.choice(option)
            counts = dict(enumerate(np.bincount(choice, minlength=7).tolist()))
            assert unit.footprint is not None
            assert unit.footprint.bytes(counts) == menu.bytes[option]
            chosen = unit.distortion[choice, np.arange(3000)].sum(dtype=np.float64)
            assert chosen == pytest.approx(menu.distortion[option], rel=1e-12)
