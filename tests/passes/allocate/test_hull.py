from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from guidedq.passes.allocate.hull import hull_slopes, lower_hull, pareto_front

options = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=1, max_size=12)


@given(options)
@settings(deadline=None, max_examples=50, derandomize=True)
def test_the_front_holds_exactly_the_options_that_nothing_beats(pairs: list[tuple[int, int]]) -> None:
    sizes, losses = np.array([a for a, _ in pairs]), np.array([float(b) for _, b in pairs])
    kept = pareto_front(sizes, losses)
    unbeaten = {(a, b) for a, b in pairs if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in pairs)}
    assert [pairs[index] for index in kept] == sorted(unbeaten)


@given(options)
@settings(deadline=None, max_examples=50, derandomize=True)
def test_the_hull_holds_the_lagrangian_optimum_of_every_multiplier(pairs: list[tuple[int, int]]) -> None:
    sizes, losses = np.array([a for a, _ in pairs]), np.array([float(b) for _, b in pairs])
    front = pareto_front(sizes, losses)
    hull = front[lower_hull(sizes[front], losses[front])]
    slopes = [(losses[a] - losses[b]) / (sizes[b] - sizes[a]) for a, b in pairwise(hull.tolist())]
    assert all(before > after > 0 for before, after in pairwise([*slopes, 1e-9]))
    for multiplier in (0.01, 0.3, 1.0, 2.5, 40.0):
        cost = losses + multiplier * sizes
        assert cost[hull].min() == cost.min()


def test_the_slopes_of_many_rows_are_those_of_each_rows_hull() -> None:
    random = np.random.default_rng(0)
    sizes = np.array([7, 3, 12, 20, 5, 3, 7])
    distortion = random.lognormal(0, 1, size=(7, 30)).astype(np.float32)
    slopes, rows = hull_slopes(sizes, distortion)
    for row in range(30):
        losses = distortion[:, row].astype(np.float64)
        front = pareto_front(sizes, losses)
        hull = front[lower_hull(sizes[front], losses[front])]
        expected = [(losses[a] - losses[b]) / (sizes[b] - sizes[a]) for a, b in pairwise(hull.tolist())]
        np.testing.assert_allclose(np.sort(slopes[rows == row])[::-1], expected, rtol=1e-12)
