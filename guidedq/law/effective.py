"""Effective parameters: which smaller, unquantized model would lose as much.

    N_eff(b) = N (1 - exp(-b / g))                   (Kumar et al. 2024, arXiv 2411.04330, equation 3)

Kumar et al. have one such factor for each of weights, activations and cache; weights alone are swept here, so the
product has one. The loss-equivalent is N' with L(N', D) = L(N, D) + increase, L the training law; g is fitted so that
L(N_eff, D) comes near that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy import ndarray
from scipy.optimize import least_squares
from scipy.stats import t as student

from guidedq.errors import LawError
from guidedq.law.forms import TRAIN_BITS
from guidedq.law.regression import CONFIDENCE, OWN_ERROR, Measured
from guidedq.law.training import TrainingLaw

LEAST_G, MOST_G = 0.05, 20.0
"""Bounds of g in bits; published ones are 1 to 4."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveWidth:
    """g of `N_eff = N (1 - exp(-b / g))`, in bits, with its interval."""

    g: float
    low: float
    high: float

    def share(self, bits: ndarray | float) -> ndarray:
        """N_eff / N at so many bits."""
        return np.asarray(-np.expm1(-np.asarray(bits) / self.g))


def fit_effective_width(law: TrainingLaw, measured: Measured) -> EffectiveWidth:
    """Fit g to loss increases: `A N_eff^-alpha - A N^-alpha` against what was measured.

    Raises:
        LawError: the increases are no such function of the bits for any g.
    """
    cells = measured.cells
    term = law.a * cells.parameters**-law.alpha
    scale = np.hypot(measured.error, OWN_ERROR * np.maximum(measured.increase, 0.0))

    def residuals(at: ndarray) -> ndarray:
        share = -np.expm1(-cells.bits / np.exp(at[0]))
        return (term * (share**-law.alpha - 1.0) - measured.increase) / scale

    bounds = ([np.log(LEAST_G)], [np.log(MOST_G)])
    starts = np.log([0.3, 1.0, 3.0])
    found = min((least_squares(residuals, [s], bounds=bounds) for s in starts), key=lambda fit: float(fit.cost))
    if found.active_mask.any() or not (slope := float(found.jac[:, 0] @ found.jac[:, 0])):
        raise LawError(
            f"no g between {LEAST_G:g} and {MOST_G:g} bits makes N (1 - exp(-b / g)) follow the measured losses "
            f"(unquantized models have {TRAIN_BITS:g} bits)."
        )
    freedom = max(1, len(measured.increase) - 1)
    width = float(student.ppf(0.5 + CONFIDENCE / 2, freedom)) * np.sqrt(2 * found.cost / freedom / slope)
    centre = float(found.x[0])
    return EffectiveWidth(
        g=float(np.exp(centre)), low=float(np.exp(centre - width)), high=float(np.exp(centre + width))
    )
