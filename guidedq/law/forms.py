"""The two forms of the law: what precision costs a trained model, as a function of its size, its training and the bits.

    power         increase = eta (D/N)^beta (b_train - b)^delta
    exponential   increase = C_T (D^gamma_D / N^gamma_N) exp(-b / g_post)

N parameters, D training tokens, b stored bits per weight; the increase is L_PTQ - L_base in the model's unit. The
second is that of Kumar et al. 2024 (arXiv 2411.04330, equation 2). Both are linear in the logarithm of the increase, so
a form is a rule that makes the rows of a matrix, and one fit serves both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import final

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from guidedq.errors import LawError

TRAIN_BITS = 16.0
"""Bits per weight of a model that is not quantized, as checkpoints are released today."""


class Form(StrEnum):
    """Which law."""

    POWER = "power"
    EXPONENTIAL = "exponential"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Where the law is asked, or was measured: one entry for each quantized model.

    Attributes:
        parameters: N.
        tokens: D; NaN where it is not known.
        bits: Stored bits per weight.
    """

    parameters: Float[ndarray, "cell"]
    tokens: Float[ndarray, "cell"]
    bits: Float[ndarray, "cell"]

    def __len__(self) -> int:
        return len(self.bits)

    def where(self, chosen: ndarray) -> Cells:
        """Some of them, by a mask or by numbers."""
        return Cells(parameters=self.parameters[chosen], tokens=self.tokens[chosen], bits=self.bits[chosen])


def regressors(form: Form, cells: Cells, train_bits: float) -> Mapping[str, Float[ndarray, "cell"]]:
    """What the logarithm of the increase is linear in, by the name of its coefficient.

    Raises:
        LawError: bits at or above `train_bits`, where the power law says that nothing is lost.
    """
    if form is Form.POWER:
        if (cells.bits >= train_bits).any():
            raise LawError(
                f"{cells.bits.max():g} bits per weight: the power law is for less than the {train_bits:g} bits that "
                "the model was trained in. Name fewer bits, or raise --train-bits."
            )
        ratio = np.log(cells.tokens / cells.parameters)
        return {"log_eta": np.ones(len(cells)), "beta": ratio, "delta": np.log(train_bits - cells.bits)}
    return {
        "log_C_T": np.ones(len(cells)),
        "gamma_D": np.log(cells.tokens),
        "gamma_N": -np.log(cells.parameters),
        "1/g_post": -cells.bits,
    }


def identified(form: Form, cells: Cells) -> tuple[str, ...]:
    """The coefficients that such measurements tell: of what does not vary the effect is part of the constant.

    Raises:
        LawError: what varies does not vary enough to tell the coefficients apart.
    """
    columns = regressors(form, cells, float(np.max(cells.bits)) + 1.0)  # any b_train tells whether the bits vary
    constant, *others = columns
    if np.ptp(cells.bits) == 0:
        raise LawError(
            f"all measurements have {cells.bits[0]:g} bits per weight: how the loss depends on the bits cannot be "
            "told from one width. Name two at least, better four: --widths 8,6,5,4,3,2."
        )
    kept = [constant, *(name for name in others if np.isfinite(columns[name]).all() and np.ptp(columns[name]) > 0)]
    matrix = np.stack([columns[name] - (name != constant) * columns[name].mean() for name in kept], axis=1)
    scaled = matrix / np.linalg.norm(matrix, axis=0)
    if np.linalg.matrix_rank(scaled, tol=SMALLEST_SINGULAR_VALUE) < len(kept):
        raise LawError(
            f"the {form} law is not identified: in these models tokens and parameters vary together, and the effect "
            "of the one cannot be told from that of the other. Add a model with other tokens per parameter."
        )
    return tuple(kept)


SMALLEST_SINGULAR_VALUE = 1e-3
"""Of the matrix with centred columns of length 1: below, a coefficient is a thousand times as uncertain as the data."""


def design(form: Form, cells: Cells, names: Sequence[str], train_bits: float) -> Float[ndarray, "cell coefficient"]:
    """The rows of the form's matrix at these cells, in the order of `names`.

    Raises:
        LawError: as `regressors`.
    """
    columns = regressors(form, cells, train_bits)
    return np.stack([columns[name] for name in names], axis=1)
