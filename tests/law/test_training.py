"""The training law: its fit, its intervals, and whether the published one is to be believed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from law_data import TRAINING, grid

from guidedq.errors import LawError
from guidedq.law.training import MOST_MISFIT, PUBLISHED_LAW, fit_training_law, misfit


def test_the_training_law_that_made_the_losses_is_found() -> None:
    cells = grid(widths=[16])
    found = fit_training_law(cells.parameters, cells.tokens, TRAINING.loss(cells.parameters, cells.tokens))
    numbers = {name: value for _, name, value in found.numbers}
    assert numbers == pytest.approx({name: value for _, name, value in TRAINING.numbers}, rel=1e-2)
    for name, value in numbers.items():
        assert found.intervals[name] == pytest.approx((value, value), rel=0.02)  # without noise there is none


@pytest.mark.parametrize(("sizes", "counts"), [([1e5], [1e6, 2e6, 4e6, 8e6, 16e6, 32e6]), ([1e5, 2e5, 4e5], [1e6])])
def test_a_series_that_does_not_tell_the_training_law_is_refused(sizes: list[float], counts: list[float]) -> None:
    cells = grid(sizes, counts, widths=[16])
    with pytest.raises(LawError, match="3 sizes, 3 token counts and 6 models"):
        fit_training_law(cells.parameters, cells.tokens, TRAINING.loss(cells.parameters, cells.tokens))


def test_the_equivalent_size_loses_as_much() -> None:
    size, tokens, increase = np.array([3e5, 1e6]), np.array([4e6, 4e6]), np.array([0.2, 0.0])
    equivalent = TRAINING.equivalent(size, increase)
    assert TRAINING.loss(equivalent, tokens) == pytest.approx(TRAINING.loss(size, tokens) + increase)
    assert equivalent[1] == pytest.approx(1e6)


def test_the_intervals_hold_the_truth_nine_times_in_ten() -> None:
    cells = grid([1e5, 3e5, 1e6, 3e6], widths=[16])
    truth = {name: value for _, name, value in TRAINING.numbers}
    held: list[bool] = []
    for seed in range(60):
        noise = np.exp(0.005 * np.random.default_rng(seed).standard_normal(len(cells)))
        loss = TRAINING.loss(cells.parameters, cells.tokens) * noise
        found = fit_training_law(cells.parameters, cells.tokens, loss)
        held += [low <= truth[name] <= high for name, (low, high) in found.intervals.items()]
    assert len(held) == 300
    assert 0.82 <= np.mean(held) <= 0.97


@pytest.mark.parametrize(("factor", "fits"), [(1.0, True), (1 + 0.9 * MOST_MISFIT, True), (1 + 2 * MOST_MISFIT, False)])
def test_a_published_law_that_misses_the_measured_loss_is_not_asked(factor: float, fits: bool) -> None:
    sizes, tokens = np.array([1e8, 1e9]), np.array([2e9, 2e10])
    loss = PUBLISHED_LAW.loss(sizes, tokens) / np.array([1.0, factor])
    problem = misfit(PUBLISHED_LAW, sizes, tokens, loss)
    assert (problem == "") == fits
    if not fits:
        assert "1,000,000,000 parameters" in problem and "(+20%, at most 10%)" in problem and "3 sizes" in problem


def test_a_published_law_is_not_asked_where_the_training_tokens_are_not_known() -> None:
    assert "--tokens" in misfit(PUBLISHED_LAW, np.array([1e8]), np.array([math.nan]), np.array([3.0]))
