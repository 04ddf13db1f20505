"""The `article` guide: row sums of |G_ij|, the guidance map of the scaling-law article, by a Kronecker surrogate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from guidedq.artifacts.activations import ActivationHistogram, ActivationPlace
from guidedq.artifacts.guidance import AbstractGuidance, QuadraticTerm
from guidedq.artifacts.samples import SampleSet
from guidedq.ir.graph import Site, Use, UseKind
from guidedq.ir.model import Model
from guidedq.progress import Progress
from guidedq.stages import AbstractGuide

from .collection import Collection, Recompute
from .events import Event
from .histograms import collect_histograms
from .kfac import DiagonalStatistics
from .statistics import AbstractStatistics, Sums, assembled, row_groups, second_moment
from .store import StoredGuidance

LARGEST_OUTPUT_FACTOR = 4096
"""Rows above which the output factor is kept as its diagonal: 4096 squared in float32 is 64 MB a site."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ArticleGuide(AbstractGuide):
    """`r_i = sum_j |d2L / dw_i dw_j|`, which bounds the quadratic form: `|d^T G d| <= sum_i r_i d_i^2`.

    With `G = A (x) B` (inputs and output gradients) the row sums factor into those of `|A|` and `|B|`; the result is a
    diagonal metric. It is kept to be compared with: the diagonal of G is below it, the cost after feedback lower still.

    Attributes:
        sequences: Sequence gradients kept for the forecast; 0 lets the model's size decide, -1 keeps none.
        checkpoint_seconds: How often an unfinished pass is saved.
        recompute: Run blocks again in the backward pass to save memory: `always`, `never`, or `auto` for large models.
    """

    sequences: int = 0
    checkpoint_seconds: float = 60.0
    recompute: Recompute = "auto"

    def collect(
        self, model: Model, samples: SampleSet, folder: Path, *, seed: int, memory_bytes: int | None, progress: Progress
    ) -> AbstractGuidance:
        """One forward and one backward pass per batch, and shard."""
        run = Collection(
            statistics=RowSumStatistics(),
            sequences=self.sequences,
            checkpoint_seconds=self.checkpoint_seconds,
            recompute=self.recompute,
        )
        return run.run(model, samples, folder, seed=seed, memory_bytes=memory_bytes, progress=progress)

    def restore(self, folder: Path) -> AbstractGuidance:
        """Read what `collect` left."""
        return StoredGuidance.read(folder)

    def histograms(
        self, model: Model, samples: SampleSet, places: Sequence[ActivationPlace], *, seed: int, progress: Progress
    ) -> Sequence[ActivationHistogram]:
        """Values and squared gradients."""
        return collect_histograms(model, samples, places, gradients=True, seed=seed, progress=progress)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RowSumStatistics(AbstractStatistics):
    """The Kronecker factors of linear and convolution uses; an embedding's rows do not meet, its diagonal serves."""

    def needs_gradients(self) -> bool:
        """They are gradients."""
        return True

    def sums(self, event: Event) -> Mapping[str, Tensor]:
        """`inputs` [group, in, in] and `outputs` [out, out] (or its diagonal [out]), and the diagonal statistics."""
        diagonal = dict(DiagonalStatistics().sums(event))
        if event.use.kind is UseKind.EMBEDDING:
            return diagonal
        assert event.gradients is not None
        grouped = event.inputs.flatten(0, 1).transpose(0, 1)
        flat = event.gradients.flatten(0, 1)
        outputs = flat.t() @ flat if event.site.rows <= LARGEST_OUTPUT_FACTOR else diagonal["row_moment"]
        return {**second_moment("inputs", grouped), "outputs": outputs, **diagonal}

    def term(self, site: Site, use: Use, sums: Sums, units: int) -> QuadraticTerm:
        """The diagonal metric of row sums, per token or sample."""
        diagonal = DiagonalStatistics().term(site, use, sums, units)
        if use.kind is UseKind.EMBEDDING:
            return diagonal
        outputs = sums["outputs"]
        rows = outputs.abs().sum(1) if outputs.dim() == 2 else outputs
        columns = assembled("inputs", sums).abs().sum(-1)
        hessian = torch.diag_embed(columns) * (rows.mean() / sums["tokens"]).float() / units
        weight = rows / rows.mean().clamp(min=torch.finfo(torch.float32).tiny)
        error = diagonal.row_weight_error / diagonal.row_weight.clamp(min=torch.finfo(torch.float32).tiny) * weight
        return QuadraticTerm(hessian=hessian, row_group=row_groups(site, 1), row_weight=weight, row_weight_error=error)
