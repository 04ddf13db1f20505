"""The metric in which one weight is rounded: its guidance as a few damped, factored Hessians."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from guidedq.artifacts.guidance import QuadraticTerm, SiteGuidance
from guidedq.errors import CalibrationError

BALANCE_CLUSTERS = 4
"""A tied weight's rows differ in how much each of its uses counts: rows of like balance are rounded in one metric, and
four clusters by quantile leave little of the spread within a cluster."""
DAMPING_GROWTH = 10.0
LARGEST_DAMPING = 1.0
"""Damping by the mean of the diagonal makes any positive semi-definite matrix well conditioned."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RowMetric:
    """Rows that are rounded under one Hessian.

    Attributes:
        rows: Their indices, ascending.
        hessian: Undamped second moments.
        dead: Inputs that were never seen: their diagonal is zero.
    """

    rows: Int64[Tensor, "n"]
    hessian: Float[Tensor, "in in"]
    dead: Bool[Tensor, "in"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """How the error of one column is spread over the columns to come.

    Attributes:
        spread: Unit upper triangular: an error `e` in column `i` asks for `-e * spread[i, j]` in column `j > i`.
        pivots: What a unit error in column `i` still costs after that, the pivots of the LDL factorization.
    """

    spread: Float[Tensor, "in in"]
    pivots: Float[Tensor, "in"]


def row_metrics(guidance: SiteGuidance) -> list[RowMetric]:
    """Split the rows by the Hessian that rounds them. A tied weight's terms are added, in clusters of like balance."""
    if len(guidance.terms) == 1:
        term = guidance.terms[0]
        return [_metric(torch.nonzero(term.row_group == group)[:, 0], term.hessian[group]) for group in _groups(term)]
    scales = torch.stack([_row_scale(term) for term in guidance.terms])
    balance = (scales[0] + 1e-30).log() - (scales[1:].sum(0) + 1e-30).log()
    order = balance.argsort(stable=True)
    metrics: list[RowMetric] = []
    for part in order.tensor_split(min(BALANCE_CLUSTERS, len(order))):
        rows = part.sort().values
        total = sum(_mean_hessian(term, rows) for term in guidance.terms)
        assert isinstance(total, Tensor)
        metrics.append(_metric(rows, total))
    return metrics


def feedback(metric: RowMetric, damping_fraction: float) -> Feedback:
    """Factor the damped Hessian. Dead inputs get the mean diagonal, so that they take no part. float64 inside.

    With `P` the reversal of columns and `P H P = L L^T`, the upper triangular `(P L P)^-1` is the Cholesky factor of
    the inverse that GPTQ needs: one factorization and one triangular inverse.

    Raises:
        CalibrationError: the Hessian is not finite, or not positive definite under the largest damping.
    """
    hessian = metric.hessian.double().flip(0, 1)
    dead, diagonal = metric.dead.flip(0), hessian.diagonal()
    mean = float(diagonal[~dead].mean()) if not bool(dead.all()) else 1.0
    diagonal[dead] += mean
    identity = torch.eye(len(hessian), dtype=torch.float64)
    damping, added = damping_fraction, 0.0
    while damping <= LARGEST_DAMPING:
        diagonal += (damping - added) * mean
        added = damping
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not int(failed):
            inverse = torch.linalg.solve_triangular(factor.flip(0, 1), identity, upper=True)
            pivots = inverse.diagonal().clone()
            return Feedback(spread=inverse.div_(pivots[:, None]).float(), pivots=pivots.pow(-2).float())
        damping = max(damping, 1e-4) * DAMPING_GROWTH
    raise CalibrationError("a Hessian is not positive definite after damping: the statistics hold NaN or infinity.")


def row_scales(guidance: SiteGuidance) -> Float[Tensor, "out"]:
    """What a unit error costs on average in each row, all uses of the weight together."""
    return torch.stack([_row_scale(term) for term in guidance.terms]).sum(0)


def _metric(rows: Tensor, hessian: Tensor) -> RowMetric:
    return RowMetric(rows=rows, hessian=hessian, dead=hessian.diagonal() <= 0)


def _groups(term: QuadraticTerm) -> list[int]:
    return term.row_group.unique().tolist()


def _row_scale(term: QuadraticTerm) -> Tensor:
    traces = term.hessian.diagonal(dim1=1, dim2=2).mean(1)
    return term.row_weight * traces[term.row_group]


def _mean_hessian(term: QuadraticTerm, rows: Tensor) -> Tensor:
    groups, weights = term.row_group[rows], term.row_weight[rows]
    mass = torch.zeros(term.hessian.shape[0]).index_add_(0, groups, weights) / len(rows)
    return torch.einsum("g,gij->ij", mass, term.hessian)
