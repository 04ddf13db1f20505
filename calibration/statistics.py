"""Additive statistics of one use of a weight: sums over tokens, which batches, halves and shards add up to.

Second moments are accumulated in float32 over a batch's products, which BLAS forms in float32; moments of the output
gradients in float64, because their fourth powers span many decades.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from guidedq.artifacts.guidance import QuadraticTerm
from guidedq.errors import CalibrationError
from guidedq.ir.graph import Site, Use, UseKind

from .events import Event

Sums = Mapping[str, Tensor]
"""Named sums; those of two runs are added name by name."""

SQUARES_AT_ONCE = 1 << 20
"""Squared gradients formed at once: 4 MB, and a few copies of them."""
STRIP_ROWS = 128
"""Rows of a second moment that are formed at once: wide enough for full speed of the matrix product."""


class AbstractStatistics(ABC):
    """Which sums a guide takes of an event, and what it makes of them."""

    @abstractmethod
    def needs_gradients(self) -> bool:
        """Whether a backward pass is needed."""

    @abstractmethod
    def sums(self, event: Event) -> Mapping[str, Tensor]:
        """What this event adds."""

    @abstractmethod
    def term(self, site: Site, use: Use, sums: Sums, units: int) -> QuadraticTerm:
        """The quadratic term of one use after `units` tokens or samples."""


def accumulate(total: dict[str, Tensor], more: Sums, prefix: str = "") -> None:
    """Add sums to `total`, under names led by `prefix`: of another event, or of another part of the samples."""
    for name, values in more.items():
        key = prefix + name
        if key in total:
            total[key] += values
        else:
            total[key] = values.clone()


def terms_of(statistics: AbstractStatistics, site: Site, sums: Sums, units: int) -> list[QuadraticTerm]:
    """The quadratic terms of those uses of a site that something was heard of.

    Raises:
        CalibrationError: a sum is not finite.
    """
    found: list[QuadraticTerm] = []
    for use in site.uses:
        prefix = f"{use.operator}|"
        mine = {name[len(prefix) :]: values for name, values in sums.items() if name.startswith(prefix)}
        if bad := [name for name, values in mine.items() if not bool(torch.isfinite(values).all())]:
            raise CalibrationError(
                f"{site.name}: the statistics {', '.join(bad)} are not finite; the model overflows on this data."
            )
        if mine:
            found.append(statistics.term(site, use, mine, units))
    return found


def row_groups(site: Site, groups: int) -> Int64[Tensor, "out"]:
    """Assign rows to `groups` contiguous blocks (times the groups of inputs that a grouped convolution has)."""
    total = min(site.rows, groups * site.input_groups)
    return torch.arange(site.rows) * total // site.rows


def guided_sums(event: Event, groups: int) -> dict[str, Tensor]:
    """Token-weighted second moments, `sum over tokens of s_k x x^T` (GuidedQuant, arXiv 2505.07004), and moments.

    `s_k` is the mean over the rows of group k of the squared output gradient. For an embedding the roles change: the
    second moments are of the gradient that reaches the looked-up row.

    Returns:
        `hessian` (strips of [k, in, in], see `second_moment`), `row_moment` [out] (sum of squared gradients, or of
        tokens that read a row),
        `row_moment_square` [out] (sum over samples of the square of each sample's `row_moment`), `samples` [].
    """
    assert event.gradients is not None
    if event.use.kind is UseKind.EMBEDDING:
        flat = event.gradients.reshape(-1, event.site.columns)
        counts = _counts(event.rows_read, event.site.rows)
        return {**second_moment("hessian", flat[None]), **_moments(counts)}
    assignment = row_groups(event.site, groups)
    total = int(assignment[-1]) + 1
    weights, by_sample = _squares(event, assignment)
    roots = weights.sqrt()
    scaled = torch.stack(
        [
            (event.inputs[:, :, group * event.site.input_groups // total] * roots[:, :, group, None]).flatten(0, 1)
            for group in range(total)
        ]
    )
    return {**second_moment("hessian", scaled), **_moments(by_sample)}


def guided_term(
    site: Site, use: Use, sums: Sums, hessian: Float[Tensor, "group in in"], groups: int, units: int
) -> QuadraticTerm:
    """The quadratic term of one use, per token or sample, from its sums (and `hessian`, a sum) over `units` of them."""
    moment, error = sums["row_moment"], moment_error(sums)
    if use.kind is UseKind.EMBEDDING:
        weight, error = token_frequencies(moment), error / moment.sum().clamp(min=1.0)
        assignment = torch.zeros(site.rows, dtype=torch.int64)
        smallest = weight[weight > 0].min()
        error = torch.maximum(error, smallest.expand_as(error))
    else:
        assignment = row_groups(site, groups)
        total = int(assignment[-1]) + 1
        means = torch.zeros(total, dtype=torch.float64).index_add_(0, assignment, moment) / assignment.bincount()
        scale = means.clamp(min=torch.finfo(torch.float64).tiny)[assignment]
        weight, error = moment / scale, error / scale
    return QuadraticTerm(
        hessian=hessian / units, row_group=assignment, row_weight=weight.float(), row_weight_error=error.float()
    )


def second_moment(name: str, vectors: Float[Tensor, "group token in"]) -> dict[str, Tensor]:
    """The sum of `v v^T` over tokens, its upper triangle alone: strips of rows, each from its diagonal onwards.

    Returns:
        `<name>.0`, `<name>.1` and so on, strip i `[group, 128, in - 128 i]`: half the memory and work of the square.
    """
    columns = vectors.shape[2]
    return {
        f"{name}.{index}": vectors[:, :, start : start + STRIP_ROWS].transpose(1, 2) @ vectors[:, :, start:]
        for index, start in enumerate(range(0, columns, STRIP_ROWS))
    }


def assembled(name: str, sums: Sums) -> Float[Tensor, "group in in"]:
    """The symmetric matrices whose strips `second_moment` took."""
    strips = [sums[f"{name}.{index}"] for index in range(sum(key.startswith(f"{name}.") for key in sums))]
    whole = torch.cat([torch.nn.functional.pad(strip, (strips[0].shape[2] - strip.shape[2], 0)) for strip in strips], 1)
    upper = whole.triu()
    return upper + whole.triu(1).transpose(1, 2)


def moment_error(sums: Sums) -> Float[Tensor, "out"]:
    """Standard error of `row_moment`, from its spread over samples."""
    samples = float(sums["samples"])
    if samples < 2:
        return sums["row_moment"].clone()
    spread = sums["row_moment_square"] - sums["row_moment"].square() / samples
    return (spread.clamp(min=0.0) * samples / (samples - 1)).sqrt()


def token_frequencies(counts: Float[Tensor, "vocabulary"]) -> Float[Tensor, "vocabulary"]:
    """How often each row will be read (Good and Turing): rows read once tell how much all the unseen ones will get."""
    total = counts.sum().clamp(min=1.0)
    unseen = counts == 0
    mass = ((counts == 1).sum().clamp(min=1.0) / total).clamp(max=0.5) if bool(unseen.any()) else torch.tensor(0.0)
    seen = counts / total * (1.0 - mass)
    return torch.where(unseen, mass / unseen.sum().clamp(min=1), seen)


def _squares(
    event: Event, assignment: Int64[Tensor, "out"]
) -> tuple[Float[Tensor, "sample token group"], Float[Tensor, "sample out"]]:
    """Mean squared gradient over each group's rows, and summed over tokens; some tokens at a time, a head is wide."""
    assert event.gradients is not None
    samples, tokens, rows = event.gradients.shape
    sizes = assignment.bincount()
    weights = torch.zeros(samples, tokens, len(sizes))
    by_sample = torch.zeros(samples, rows, dtype=torch.float64)
    step = max(1, SQUARES_AT_ONCE // (samples * rows))
    for start in range(0, tokens, step):
        squares = event.gradients[:, start : start + step].square()
        weights[:, start : start + step].index_add_(2, assignment, squares)
        by_sample += squares.sum(1)
    return weights / sizes, by_sample


def _moments(by_sample: Float[Tensor, "sample out"]) -> dict[str, Tensor]:
    return {
        "row_moment": by_sample.sum(0),
        "row_moment_square": by_sample.square().sum(0),
        "samples": torch.tensor(float(len(by_sample)), dtype=torch.float64),
    }


def _counts(rows: Int64[Tensor, "sample token"], vocabulary: int) -> Float[Tensor, "sample vocabulary"]:
    counts = torch.zeros(len(rows), vocabulary, dtype=torch.float64)
    return counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float64))
