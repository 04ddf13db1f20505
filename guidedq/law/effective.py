"""Effective parameters: which smaller, unquantized model would lose as much.

    L(N, D) = E + A / N^alpha + B / D^beta           the training law (Hoffmann et al. 2022, arXiv 2203.15556)
    N_eff(b) = N (1 - exp(-b / g))                   (Kumar et al. 2024, arXiv 2411.04330, equation 3)

Kumar et al. have one such factor for each of weights, activations and cache; weights alone are swept here, so the
product has one. The loss-equivalent is N' with L(N', D) = L(N, D) + increase; g is fitted so that L(N_eff, D) comes
near that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import least_squares
from scipy.stats import gmean
from scipy.stats import t as student

from guidedq.errors import LawError
from guidedq.law.forms import TRAIN_BITS
from guidedq.law.regression import CONFIDENCE, OWN_ERROR, Measured

PUBLISHED, FITTED = "published", "fitted"
LEAST_SIZES, LEAST_TOKEN_COUNTS, LEAST_MODELS = 3, 3, 6
"""For five coefficients: an exponent and a floor need three values, and one model more than coefficients."""
EXPONENTS = (0.02, 3.0)
"""Bounds of alpha and beta; published ones are 0.3 to 0.6. A fit that ends at a bound is none."""
STARTS = (0.1, 0.3, 0.7)
"""Exponents to start from."""
LEAST_G, MOST_G = 0.05, 20.0
"""Bounds of g in bits; published ones are 1 to 4."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLaw:
    """The loss of an unquantized model, nats per token.

    Attributes:
        a: A.
        alpha: Of the parameters.
        b: B.
        beta: Of the tokens.
        floor: E.
        source: `fitted` to the models at hand, or `published`.
    """

    a: float
    alpha: float
    b: float
    beta: float
    floor: float
    source: str

    def loss(self, parameters: ndarray | float, tokens: ndarray | float) -> ndarray:
        """L(N, D)."""
        size, training = self.a * np.power(parameters, -self.alpha), self.b * np.power(tokens, -self.beta)
        return np.asarray(self.floor + size + training)

    def equivalent(self, parameters: ndarray | float, increase: ndarray | float) -> ndarray:
        """The size that loses so much more than `parameters`; of an increase below zero, `parameters` itself."""
        raised = np.power(parameters, -self.alpha) + np.maximum(increase, 0.0) / self.a
        return np.asarray(np.power(raised, -1 / self.alpha))


PUBLISHED_LAW = TrainingLaw(a=406.4, alpha=0.34, b=410.7, beta=0.28, floor=1.69, source=PUBLISHED)
"""Hoffmann et al. 2022, equation 10: language models of 70M to 16B parameters on MassiveText."""


def fit_training_law(
    parameters: Float[ndarray, "model"], tokens: Float[ndarray, "model"], loss: Float[ndarray, "model"]
) -> TrainingLaw:
    """Fit the training law to unquantized losses, by least squares of their logarithms.

    Raises:
        LawError: too few models, or they do not tell its exponents.
    """
    sizes, counts = len(np.unique(parameters)), len(np.unique(tokens))
    if not (sizes >= LEAST_SIZES and counts >= LEAST_TOKEN_COUNTS and len(loss) >= LEAST_MODELS):
        raise LawError(
            f"the training law needs {LEAST_SIZES} sizes, {LEAST_TOKEN_COUNTS} token counts and {LEAST_MODELS} models; "
            f"found {sizes}, {counts} and {len(loss)}."
        )
    # relative to a model in the middle, the constants are shares of its loss
    size, count, middle = float(gmean(parameters)), float(gmean(tokens)), float(np.median(loss))

    def residuals(at: ndarray) -> ndarray:
        a, alpha, b, beta, floor = at
        law = a * (parameters / size) ** -alpha + b * (tokens / count) ** -beta + floor
        return np.log(middle * law / loss)

    low = [1e-4, EXPONENTS[0], 1e-4, EXPONENTS[0], 0.0]
    high = [3.0, EXPONENTS[1], 3.0, EXPONENTS[1], 1.0]
    starts = [[0.3, alpha, 0.3, beta, 0.3] for alpha in STARTS for beta in STARTS]
    fits = [least_squares(residuals, start, bounds=(low, high), xtol=1e-12, ftol=1e-12) for start in starts]
    best = min(fits, key=lambda fit: float(fit.cost))
    a, alpha, b, beta, floor = (float(value) for value in best.x)
    if best.active_mask[[1, 3]].any():
        raise LawError("these models' losses do not tell the exponents of the training law.")
    return TrainingLaw(
        a=middle * a * size**alpha,
        alpha=alpha,
        b=middle * b * count**beta,
        beta=beta,
        floor=middle * floor,
        source=FITTED,
    )


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
