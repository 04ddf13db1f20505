"""The training law and the effective parameters."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from law_data import TRAINING, grid

from guidedq.errors import LawError
from guidedq.law.effective import EffectiveWidth, fit_effective_width, fit_training_law
from guidedq.law.regression import Measured


def test_the_training_law_that_made_the_losses_is_found() -> None:
    cells = grid(widths=[16])
    found = fit_training_law(cells.parameters, cells.tokens, TRAINING.loss(cells.parameters, cells.tokens))
    assert astuple(found)[:5] == pytest.approx(astuple(TRAINING)[:5], rel=1e-2)


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


def test_the_width_that_made_the_increases_is_found() -> None:
    cells = grid([3e5], [4e6])
    truth = EffectiveWidth(g=1.3, low=1.3, high=1.3)
    lost = TRAINING.loss(cells.parameters * truth.share(cells.bits), cells.tokens)
    increase = lost - TRAINING.loss(cells.parameters, cells.tokens)
    found = fit_effective_width(TRAINING, Measured(cells=cells, increase=increase, error=1e-3 * increase))
    assert (found.g, found.low, found.high) == pytest.approx((1.3, 1.3, 1.3), rel=1e-3)


def test_increases_that_fall_with_nothing_have_no_width() -> None:
    cells = grid([3e5], [4e6])
    flat = Measured(cells=cells, increase=np.full(len(cells), 1e3), error=np.ones(len(cells)))
    with pytest.raises(LawError, match="no g between"):
        fit_effective_width(TRAINING, flat)
