"""What a compile is asked to do, apart from the budget."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from guidedq.artifacts.footprint import Footprint
from guidedq.ir.activation_rounding import ActivationRounding
from guidedq.ir.model import Model
from guidedq.original import OriginalOutputs
from guidedq.progress import Progress, SilentProgress
from guidedq.quant.formats import RoundedFormat
from guidedq.recipe import Recipe
from guidedq.stages import AbstractBackend, AbstractSampler
from guidedq.workspace import Workspace


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Stopwatch:
    """Seconds by stage; stages that run several times add up."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def time(self, stage: str) -> Generator[None]:
        """Add the time of the block to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that the driver needs besides a budget.

    Attributes:
        model: Loaded, its graph rewritten for the scope and the backend.
        backend: Writes the artifact.
        recipe: The stages and their options.
        sampler: Makes the calibration set.
        data: Files to sample from; empty if the sampler makes its own.
        evaluation_data: Files to measure on; empty to hold back a tenth of `data`.
        seed: Seeds every draw.
        workspace: Where measured things are kept.
        memory_bytes: Bound on statistics held at once.
        progress: Told about the work.
        stopwatch: Seconds by stage.
    """

    model: Model
    backend: AbstractBackend
    recipe: Recipe
    sampler: AbstractSampler
    data: tuple[Path, ...] = ()
    evaluation_data: tuple[Path, ...] = ()
    seed: int = 0
    workspace: Workspace
    memory_bytes: int | None = None
    progress: Progress = field(default_factory=SilentProgress)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def footprint(self) -> Footprint:
        """What the backend can hold of the recipe's formats."""
        return self.backend.footprint(self.model, self._formats)

    def own_rounding(self) -> ActivationRounding | None:
        """How the backend's runtime rounds activations on its own account."""
        return self.backend.own_rounding(self.model, self._formats)

    @property
    def _formats(self) -> tuple[RoundedFormat, ...]:
        return self.recipe.formats(self.backend.entropy_code(self.model, asked=self.recipe.coding == "entropy"))

    @property
    def original(self) -> OriginalOutputs:
        """What the model itself says, kept in the workspace."""
        return OriginalOutputs.of(self.model.program, self.model.digest, self.workspace)
