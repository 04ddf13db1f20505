"""The `none` guide: every weight matters alike, no data are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from guidedq.artifacts.activations import ActivationHistogram, ActivationPlace
from guidedq.artifacts.guidance import AbstractGuidance, identity_guidance
from guidedq.artifacts.samples import SampleSet
from guidedq.ir.model import Model
from guidedq.progress import Progress
from guidedq.stages import AbstractGuide

from .histograms import collect_histograms
from .store import StoredGuidance, write_site


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NoGuide(AbstractGuide):
    """Plain squared error of the weights: what quantizers without calibration minimise."""

    def collect(
        self, model: Model, samples: SampleSet, folder: Path, *, seed: int, memory_bytes: int | None, progress: Progress
    ) -> AbstractGuidance:
        """Write the identity for every site; the model is not run."""
        sites = model.graph.quantizable
        for number, site in enumerate(sites):
            write_site(folder, number, identity_guidance(site.rows, site.columns).terms)
        guidance = StoredGuidance(
            folder=folder,
            shapes={site.name: (site.rows, site.columns) for site in sites},
            sequences=0,
            sequence_units=1.0,
            numbers={"units": 0.0, "samples": 0.0, "passes": 0.0, "forward_backward_seconds": 0.0},
        )
        guidance.save()
        return guidance

    def restore(self, folder: Path) -> AbstractGuidance:
        """Read what `collect` left."""
        return StoredGuidance.read(folder)

    def histograms(
        self, model: Model, samples: SampleSet, places: Sequence[ActivationPlace], *, seed: int, progress: Progress
    ) -> Sequence[ActivationHistogram]:
        """Values alone."""
        return collect_histograms(model, samples, places, gradients=False, seed=seed, progress=progress)
