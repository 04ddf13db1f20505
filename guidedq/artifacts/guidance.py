"""Guidance: for every site, the quadratic form that says which errors matter to the end loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QuadraticTerm:
    """`1/2 * sum over rows of row_weight * error @ hessian[row_group] @ error`, in units of loss per token or sample.

    Attributes:
        hessian: Second moments, symmetric, positive semi-definite, float32. For a linear use the mean over tokens of
            `s_k x x^T`, for an embedding use of `g g^T`.
        row_group: Which hessian each row uses.
        row_weight: Relative sensitivity of each row.
        row_weight_error: Standard error of `row_weight` over sequences.
    """

    hessian: Float[Tensor, "group in in"]
    row_group: Int64[Tensor, "out"]
    row_weight: Float[Tensor, "out"]
    row_weight_error: Float[Tensor, "out"]

    @property
    def importance(self) -> float:
        """What a weight matters on average: 0 where nothing was heard."""
        return float(self.hessian.diagonal(dim1=1, dim2=2).mean() * self.row_weight.mean())


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SiteGuidance:
    """What is known of one site: one term per use of its weight; their sum is the site's distortion."""

    terms: tuple[QuadraticTerm, ...]

    def distortion(self, error: Float[Tensor, "out in"], rows: Tensor | None = None) -> Float[Tensor, "out"]:
        """The predicted loss increase of each row's error, as if all other rows were exact. Accumulated in float32.

        Args:
            error: Quantized minus original weight.
            rows: Which rows of the weight `error` holds, ascending; all of them by default.
        """
        total = torch.zeros(error.shape[0])
        for term in self.terms:
            groups = term.row_group if rows is None else term.row_group[rows]
            weights = term.row_weight if rows is None else term.row_weight[rows]
            for group in range(len(term.hessian)):
                chosen = slice(None) if len(term.hessian) == 1 else (groups == group).nonzero()[:, 0]
                part = error[chosen]
                total[chosen] += 0.5 * weights[chosen] * (part @ term.hessian[group]).mul_(part).sum(1)
        return total.clamp_(min=0.0)


class AbstractSequenceGradients(ABC):
    """The weight gradient of every kept sequence, for one site: `sum over tokens of g x^T`."""

    @property
    @abstractmethod
    def sequences(self) -> int:
        """How many sequences were kept."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Float[Tensor, "sequence out in"]:
        """The gradients of rows `start` to `stop - 1`."""


class AbstractGuidance(ABC):
    """Guidance for a whole model, held on disk and read one site at a time."""

    @property
    @abstractmethod
    def units_per_sequence(self) -> float:
        """Tokens (or samples) that one kept sequence stands for: divides squared projections into loss per unit."""

    @abstractmethod
    def site(self, name: str) -> SiteGuidance:
        """The guidance of one site."""

    @abstractmethod
    def gradients(self, name: str) -> AbstractSequenceGradients | None:
        """The per-sequence gradients of one site; `None` if the guide takes no gradients."""

    @property
    @abstractmethod
    def facts(self) -> Mapping[str, float]:
        """Numbers for the report: tokens, noise, seconds of the model's own passes."""


def identity_guidance(rows: int, columns: int) -> SiteGuidance:
    """Every weight matters alike: the plain squared error."""
    term = QuadraticTerm(
        hessian=torch.eye(columns)[None],
        row_group=torch.zeros(rows, dtype=torch.int64),
        row_weight=torch.ones(rows),
        row_weight_error=torch.zeros(rows),
    )
    return SiteGuidance(terms=(term,))
