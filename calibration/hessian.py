"""The `hessian` guide: second moments of the inputs, so that the layer's own output error counts (GPTQ)."""

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

from .collection import AbstractStatistics, Collection
from .events import Event
from .histograms import collect_histograms
from .statistics import Sums, assembled, row_groups, second_moment, token_frequencies
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


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class InputStatistics(AbstractStatistics):
    """Second moments of the inputs; how often each row of an embedding is read."""

    def needs_gradients(self) -> bool:
        """Never."""
        return False

    def sums(self, event: Event) -> Mapping[str, Tensor]:
        """`hessian` (strips of [input_group, in, in]), or `counts` [vocabulary]."""
        if event.use.kind is UseKind.EMBEDDING:
            return {"counts": event.rows_read.reshape(-1).bincount(minlength=event.site.rows).double()}
        return second_moment("hessian", event.inputs.flatten(0, 1).transpose(0, 1))

    def term(self, site: Site, use: Use, sums: Sums, units: int) -> QuadraticTerm:
        """Rows of a linear use count alike; rows of an embedding as often as they are read."""
        if use.kind is UseKind.EMBEDDING:
            hessian, assignment = torch.eye(site.columns)[None], torch.zeros(site.rows, dtype=torch.int64)
            weight = token_frequencies(sums["counts"]).float()
        else:
            hessian, assignment, weight = assembled("hessian", sums) / units, row_groups(site, 1), torch.ones(site.rows)
        error = torch.zeros(site.rows)
        return QuadraticTerm(hessian=hessian, row_group=assignment, row_weight=weight, row_weight_error=error)
