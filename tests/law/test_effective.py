"""The effective parameters."""

from __future__ import annotations

import numpy as np
import pytest
from law_data import TRAINING, grid

from guidedq.errors import LawError
from guidedq.law.effective import EffectiveWidth, fit_effective_width
from guidedq.law.regression import Measured


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
