"""The training law: what a model that is not quantized loses, by its size and its training.

    L(N, D) = E + A / N^alpha + B / D^beta           (Hoffmann et al. 2022, arXiv 2203.15556)

It turns a loss increase into parameters. Where the models at hand do not tell it, the published one stands in, if it
says of them what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import least_squares
from scipy.stats import gmean
from scipy.stats import t as student

from guidedq.errors import LawError
from guidedq.law.regression import CONFIDENCE, LARGEST_EXPONENT

PUBLISHED, FITTED = "published", "fitted"
LEAST_SIZES, LEAST_TOKEN_COUNTS, LEAST_MODELS = 3, 3, 6
"""For five coefficients: an exponent and a floor need three values, and one model more than coefficients."""
EXPONENTS = (0.02, 3.0)
"""Bounds of alpha and beta; published ones are 0.3 to 0.6. A fit that ends at a bound is none."""
STARTS = (0.1, 0.3, 0.7)
"""Exponents to start from."""
MOST_MISFIT = 0.1
"""Of the measured loss. Rounding to 3 bits costs a model about a tenth of its loss: a law that misses the loss itself
by as much has no say in which size an increase is worth."""


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
        intervals: Of each number that was fitted, by the name of its attribute: low and high.
    """

    a: float
    alpha: float
    b: float
    beta: float
    floor: float
    source: str
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    @property
    def numbers(self) -> tuple[tuple[str, str, float], ...]:
        """E, A, alpha, B, beta: as they are written, the attribute, the value."""
        names = (("E", "floor"), ("A", "a"), ("alpha", "alpha"), ("B", "b"), ("beta", "beta"))
        return tuple((shown, name, getattr(self, name)) for shown, name in names)

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
        intervals=_intervals(best.x, best.jac, 2 * float(best.cost), scales=(size, count, middle)),
    )


def misfit(
    law: TrainingLaw,
    parameters: Float[ndarray, "model"],
    tokens: Float[ndarray, "model"],
    loss: Float[ndarray, "model"],
) -> str:
    """Why a training law is not to be asked about these unquantized models; empty where it says what was measured.

    Args:
        law: Which.
        parameters: N of each model.
        tokens: D, NaN where it is not known.
        loss: As measured, nats per token.
    """
    if np.isnan(tokens).any():
        return (
            f"whether the {law.source} training law holds for these models is not known without their training tokens "
            f"(--tokens). {WITHHELD}"
        )
    said = law.loss(parameters, tokens)
    worst = int(np.argmax(np.abs(said / loss - 1.0)))
    away = float(said[worst] / loss[worst]) - 1.0
    if abs(away) <= MOST_MISFIT:
        return ""
    return (
        f"the {law.source} training law says {said[worst]:.3g} nats/token for {parameters[worst]:,.0f} parameters "
        f"after {tokens[worst]:,.0f} tokens, where {loss[worst]:.3g} were measured ({away:+.0%}, at most "
        f"{MOST_MISFIT:.0%}). {WITHHELD}"
    )


WITHHELD = (
    "So no size of equal loss, no N_eff and no trade of bits for parameters is told: sweep "
    f"{LEAST_MODELS} models of {LEAST_SIZES} sizes and {LEAST_TOKEN_COUNTS} token counts, and their own law is fitted."
)


def _intervals(
    found: Float[ndarray, "5"], slopes: Float[ndarray, "model 5"], squares: float, *, scales: tuple[float, float, float]
) -> dict[str, tuple[float, float]]:
    """Each number's interval, from the covariance of the fit scaled by what is left of the residuals.

    Args:
        found: The constants, relative to the scales, and the exponents.
        slopes: Of the residuals.
        squares: Sum of the squared residuals.
        scales: The size, token count and loss that the constants are relative to.
    """
    (size, count, middle), (a, _, b, _, floor) = scales, found.tolist()
    freedom = len(slopes) - len(found)
    covariance = np.linalg.pinv(slopes.T @ slopes) * (squares / freedom)
    quantile = float(student.ppf(0.5 + CONFIDENCE / 2, freedom))
    exponents = {"alpha": (1, found[1]), "beta": (3, found[3])}
    ends: dict[str, tuple[float, float]] = {}
    for name, (place, value) in exponents.items():
        width = quantile * math.sqrt(covariance[place, place])
        ends[name] = (float(value) - width, float(value) + width)
    for name, place, constant, scale, exponent in (("a", 0, a, size, found[1]), ("b", 2, b, count, found[3])):
        turn = np.zeros(len(found))  # the logarithm of A is that of a, and alpha times that of the size
        turn[place], turn[place + 1] = 1 / constant, math.log(scale)
        centre = math.log(middle * constant) + float(exponent) * math.log(scale)
        width = quantile * math.sqrt(float(turn @ covariance @ turn))
        ends[name] = (_exp(centre - width), _exp(centre + width))
    width = quantile * math.sqrt(covariance[4, 4])
    ends["floor"] = (middle * max(0.0, floor - width), middle * (floor + width))
    return ends


def _exp(value: float) -> float:
    return math.exp(min(max(value, -LARGEST_EXPONENT), LARGEST_EXPONENT))
