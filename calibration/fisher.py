"""The `fisher` guide: second moments weighted by what each token's gradient says of the end loss (default)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import Tensor

from guidedq.artifacts.activations import ActivationHistogram, ActivationPlace
from guidedq.artifacts.guidance import AbstractGuidance, QuadraticTerm
from guidedq.artifacts.samples import SampleSet
from guidedq.ir.graph import Site, Use
from guidedq.ir.model import Model
from guidedq.progress import Progress
from guidedq.stages import AbstractGuide

from .collection import Collection, Recompute
from .events import Event
from .histograms import collect_histograms
from .input_statistics import InputStatistics
from .statistics import AbstractStatistics, Sums, assembled, guided_sums, guided_term
from .store import StoredGuidance


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FisherGuide(AbstractGuide):
    """End-loss guidance (GuidedQuant, Kim et al. 2025, arXiv 2505.07004) with random signs for labels.

    A model that cannot be differentiated gets forward-only guidance instead: the second moments of the inputs.

    Attributes:
        groups: Blocks of rows with a Hessian of their own.
        sequences: Sequence gradients kept for the forecast; 0 lets the model's size decide, -1 keeps none.
        checkpoint_seconds: How often an unfinished pass is saved.
        recompute: Run blocks again in the backward pass to save memory: `always`, `never`, or `auto` for large models.
    """

    groups: int = 1
    sequences: int = 0
    checkpoint_seconds: float = 60.0
    recompute: Recompute = "auto"

    def collect(
        self, model: Model, samples: SampleSet, folder: Path, *, seed: int, memory_bytes: int | None, progress: Progress
    ) -> AbstractGuidance:
        """One forward and one backward pass per batch, and shard."""
        statistics = GuidedStatistics(groups=self.groups) if model.program.differentiable else InputStatistics()
        run = Collection(
            statistics=statistics,
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
class GuidedStatistics(AbstractStatistics):
    """Token-weighted second moments and moments of the output gradient."""

    groups: int

    def needs_gradients(self) -> bool:
        """They are gradients."""
        return True

    def sums(self, event: Event) -> Mapping[str, Tensor]:
        """See `guided_sums`."""
        return guided_sums(event, self.groups)

    def term(self, site: Site, use: Use, sums: Sums, units: int) -> QuadraticTerm:
        """See `guided_term`."""
        return guided_term(site, use, sums, assembled("hessian", sums), self.groups, units)
