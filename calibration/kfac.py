"""The `kfac` guide: the diagonal of a Kronecker-factored Fisher matrix."""

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
from .statistics import AbstractStatistics, Sums, assembled, guided_sums, guided_term
from .store import StoredGuidance


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KfacGuide(AbstractGuide):
    """`E[dL/dw_ij^2]` as `E[x_j^2] E[g_i^2]` (Martens and Grosse 2015, arXiv 1503.05671), diagonals only.

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
            statistics=DiagonalStatistics(),
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
class DiagonalStatistics(AbstractStatistics):
    """Squared inputs and squared output gradients, summed apart."""

    def needs_gradients(self) -> bool:
        """They are gradients."""
        return True

    def sums(self, event: Event) -> Mapping[str, Tensor]:
        """`column_moment` [input_group, in], `tokens`, and the moments of `guided_sums`."""
        if event.use.kind is UseKind.EMBEDDING:
            return guided_sums(event, 1)
        tokens = torch.tensor(float(event.inputs.shape[0] * event.inputs.shape[1]), dtype=torch.float64)
        return {"column_moment": event.inputs.square().sum((0, 1)), "tokens": tokens, **_moments_of(event)}

    def term(self, site: Site, use: Use, sums: Sums, units: int) -> QuadraticTerm:
        """A diagonal Hessian: mean squared input times mean squared gradient, summed over tokens, per unit."""
        if use.kind is UseKind.EMBEDDING:
            diagonal = assembled("hessian", sums).diagonal(dim1=1, dim2=2)
        else:
            diagonal = sums["column_moment"] * (sums["row_moment"].sum() / site.rows / sums["tokens"]).float()
        return guided_term(site, use, sums, torch.diag_embed(diagonal), 1, units)


def _moments_of(event: Event) -> dict[str, Tensor]:
    assert event.gradients is not None
    by_sample = event.gradients.square().sum(1).double()
    samples = torch.tensor(float(len(by_sample)), dtype=torch.float64)
    return {"row_moment": by_sample.sum(0), "row_moment_square": by_sample.square().sum(0), "samples": samples}
