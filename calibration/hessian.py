"""The `hessian` guide: second moments of the inputs, so that the layer's own output error counts (GPTQ)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from guidedq.artifacts.activations import ActivationHistogram, ActivationPlace
from guidedq.artifacts.guidance import AbstractGuidance
from guidedq.artifacts.samples import SampleSet
from guidedq.ir.model import Model
from guidedq.progress import Progress
from guidedq.stages import AbstractGuide

from .collection import Collection
from .histograms import collect_histograms
from .input_statistics import InputStatistics
from .store import StoredGuidance


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HessianGuide(AbstractGuide):
    """Layer output error: `H = E[x x^T]`, every output alike (GPTQ, Frantar et al. 2023). Forward passes only.

    Attributes:
        checkpoint_seconds: How often an unfinished pass is saved.
    """

    checkpoint_seconds: float = 60.0

    def collect(
        self, model: Model, samples: SampleSet, folder: Path, *, seed: int, memory_bytes: int | None, progress: Progress
    ) -> AbstractGuidance:
        """One forward pass per batch, and shard."""
        run = Collection(statistics=InputStatistics(), sequences=-1, checkpoint_seconds=self.checkpoint_seconds)
        return run.run(model, samples, folder, seed=seed, memory_bytes=memory_bytes, progress=progress)

    def restore(self, folder: Path) -> AbstractGuidance:
        """Read what `collect` left."""
        return StoredGuidance.read(folder)

    def histograms(
        self, model: Model, samples: SampleSet, places: Sequence[ActivationPlace], *, seed: int, progress: Progress
    ) -> Sequence[ActivationHistogram]:
        """Values alone."""
        return collect_histograms(model, samples, places, gradients=False, seed=seed, progress=progress)
