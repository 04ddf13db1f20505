"""Fit a form of the law to measurements, predict with it, and see how it does where it has not looked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import least_squares
from scipy.stats import linregress
from scipy.stats import t as student

from guidedq.errors import LawError
from guidedq.law.forms import Cells, Form, design, identified

CONFIDENCE = 0.90
"""Of every interval, as of the forecasts'."""
OWN_ERROR = 0.2
"""Share by which such a law is off anyway: a larger increase is not a more exact one, whatever its noise."""
NOISE_ERRORS = 3.0
"""An increase above so many of its standard errors is no noise: with two, one in forty of nothing would pass."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Loss increases of quantized models.

    Attributes:
        cells: What was measured.
        increase: L_PTQ - L_base, in the model's unit; may be below zero by noise.
        error: Their standard errors over the evaluation samples, above zero.
    """

    cells: Cells
    increase: Float[ndarray, "cell"]
    error: Float[ndarray, "cell"]

    @property
    def clear(self) -> ndarray:
        """Which of them stand above their noise."""
        return self.increase > NOISE_ERRORS * self.error

    def where(self, chosen: ndarray) -> Measured:
        """Some of them, by a mask or by numbers."""
        return Measured(cells=self.cells.where(chosen), increase=self.increase[chosen], error=self.error[chosen])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A fitted form.

    Attributes:
        form: Which.
        train_bits: b_train.
        names: The coefficients that the measurements told, the first of them the logarithm of the constant.
        values: Their values.
        covariance: Of the values.
        freedom: Measurements beyond coefficients.
    """

    form: Form
    train_bits: float
    names: tuple[str, ...]
    values: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    freedom: int

    @property
    def quantile(self) -> float:
        """Half the interval of a coefficient, in standard errors."""
        return float(student.ppf(0.5 + CONFIDENCE / 2, self.freedom))

    def intervals(self) -> dict[str, tuple[float, float, float]]:
        """The parameters of the form as it is written, each with its interval: value, low, high.

        An interval that holds zero has no finite inverse: g_post is then infinite at one end.
        """
        found: dict[str, tuple[float, float, float]] = {}
        errors = np.sqrt(np.diag(self.covariance)).tolist()
        for name, value, error in zip(self.names, self.values, errors, strict=True):
            low, high = value - self.quantile * error, value + self.quantile * error
            if name.startswith("log_"):
                centre, bottom, top = map(float, _exp(np.array([value, low, high])))
                found[name.removeprefix("log_")] = (centre, bottom, top)
            elif name.startswith("1/"):
                found[name.removeprefix("1/")] = (1 / value, 1 / high, 1 / low if low > 0 else math.inf)
            else:
                found[name] = (value, low, high)
        return found


def fit_form(form: Form, measured: Measured, train_bits: float) -> Fit:
    """Fit by weighted least squares on the increases themselves, from the solution in their logarithms.

    Residuals are relative where an increase is large and absolute where it is noise. The covariance is scaled by what
    is left of them, so it tells the law's own misfit too.

    Raises:
        LawError: a loss is not finite, nothing stands above the noise, or the coefficients are not identified.
    """
    check_losses(measured)
    names = identified(form, measured.cells)
    rows = design(form, measured.cells, names, train_bits)
    clear = measured.clear
    if clear.sum() <= len(names) or np.linalg.matrix_rank(rows[clear]) < len(names):
        raise LawError(
            f"the {form} law has {len(names)} coefficients ({', '.join(names)}) and needs one more measurement above "
            f"its noise, found {clear.sum()} of {len(rows)}. Sweep more or narrower widths (--widths 6,5,4,3,2), or "
            "measure on more --eval-data."
        )
    # in an orthonormal basis: as they stand, the constant and the slopes hang together to many digits
    basis, triangle = np.linalg.qr(rows)
    start = np.linalg.lstsq(basis[clear], np.log(measured.increase[clear]), rcond=None)[0]
    scale = np.hypot(measured.error, OWN_ERROR * np.maximum(measured.increase, 0.0))

    def residuals(turned: ndarray) -> ndarray:
        return (_exp(basis @ turned) - measured.increase) / scale

    def slopes(turned: ndarray) -> ndarray:
        return basis * (_exp(basis @ turned) / scale)[:, None]

    analytic: Any = slopes  # scipy's annotation knows only the names of rules
    found = least_squares(residuals, start, jac=analytic, method="lm", xtol=1e-12, ftol=1e-12)
    freedom = len(rows) - len(names)
    back = np.linalg.inv(triangle)
    spread = back @ np.linalg.pinv(found.jac.T @ found.jac) @ back.T * (2 * found.cost / freedom)
    return Fit(
        form=form,
        train_bits=train_bits,
        names=names,
        values=tuple((back @ found.x).tolist()),
        covariance=tuple(map(tuple, spread.tolist())),
        freedom=freedom,
    )


def predicted(fit: Fit, cells: Cells) -> tuple[ndarray, ndarray, ndarray]:
    """The increase at each cell, with the ends of its interval: that of the curve, not of one more measurement.

    Raises:
        LawError: as `design`.
    """
    rows = design(fit.form, cells, fit.names, fit.train_bits)
    centre = rows @ np.array(fit.values)
    width = fit.quantile * np.sqrt(np.einsum("ij,jk,ik->i", rows, np.array(fit.covariance), rows))
    return _exp(centre), _exp(centre - width), _exp(centre + width)


def held_out_error(form: Form, measured: Measured, groups: ndarray, train_bits: float) -> float | None:
    """Root mean square of log(predicted / measured), each group predicted by a fit to the others.

    Only measurements above their noise are asked for.

    Args:
        form: Which law.
        measured: All measurements.
        groups: A label for each of them.
        train_bits: b_train.

    Returns:
        `None` where the law is not identified without one of the groups.
    """
    errors: list[float] = []
    for group in np.unique(groups):
        held = (groups == group) & measured.clear
        if not held.any():
            continue
        try:
            fit = fit_form(form, measured.where(groups != group), train_bits)
        except LawError:
            return None
        centre, _, _ = predicted(fit, measured.cells.where(held))
        errors += np.log(centre / measured.increase[held]).tolist()
    return float(np.sqrt(np.mean(np.square(errors))))


def growth(measured: Measured) -> tuple[float, float, float] | None:
    """The exponent with which the increase grows with tokens per parameter, without any law of the bits.

    The slope of a line in logarithms through the measurements above their noise, with its interval.

    Returns:
        `None` where fewer than three of them are left, or they have the same training.
    """
    seen = measured.where(measured.clear & np.isfinite(measured.cells.tokens))
    ratio = np.log(seen.cells.tokens / seen.cells.parameters)
    if len(ratio) < LEAST_POINTS or np.ptp(ratio) == 0:
        return None
    line: Any = linregress(ratio, np.log(seen.increase))
    width = float(student.ppf(0.5 + CONFIDENCE / 2, len(ratio) - 2)) * line.stderr
    return float(line.slope), float(line.slope - width), float(line.slope + width)


LEAST_POINTS = 3
"""A line through two points has no error."""


def check_losses(measured: Measured) -> None:
    """See that there is something to fit.

    Raises:
        LawError: a loss is not a finite number, or no width loses more than its noise.
    """
    bad = ~np.isfinite(measured.increase) | ~np.isfinite(measured.error)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise LawError(
            f"the loss increase at {measured.cells.bits[first]:.3g} bits is {measured.increase[first]}, not a finite "
            f"number ({bad.sum()} of {len(bad)} measurements): leave such widths out with --widths."
        )
    if not measured.clear.any():
        raise LawError(
            f"no width loses more than the noise of its measurement (largest increase {measured.increase.max():.2g}, "
            f"standard error {measured.error.max():.2g}): there is nothing to fit. Sweep narrower widths, or measure "
            "on more --eval-data."
        )


def _exp(values: ndarray) -> ndarray:
    """`exp`, kept within float64: a step of the fit may go far."""
    return np.exp(np.clip(values, -LARGEST_EXPONENT, LARGEST_EXPONENT))


LARGEST_EXPONENT = 300.0
