"""What a compile is asked to do, apart from the budget."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from guidedq.artifacts.footprint import Footprint
from guidedq.artifacts.profile import Profile, read_profile
from guidedq.errors import ProfileError
from guidedq.ir.activation_rounding import ActivationRounding
from guidedq.ir.model import Model
from guidedq.original import OriginalOutputs
from guidedq.progress import Progress, SilentProgress
from guidedq.quant.formats import EntropyCode, RoundedFormat
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
class LatencyGoal:
    """That the model is to be fast, too.

    Attributes:
        ratio: Of the original's latency, the most that may be taken; `None` for as little as the loss allows.
        profile: Measured kernels; without it those of the model are measured.
        file: Where the profile comes from, for people.
        threads: That the runtime is given.
    """

    ratio: float | None = None
    profile: Profile | None = None
    file: str = ""
    threads: int = 1


def latency_goal(
    objective: str, max_latency: str | float | None, profile: str | Path | None, threads: int | None
) -> LatencyGoal | None:
    """What the user asks of latency; `None` if nothing.

    Args:
        objective: `size` or `latency`.
        max_latency: A share of the original's latency: `0.6x`, or 0.6.
        profile: A file of kernel times.
        threads: Of the runtime; by default the profile's, or 1.

    Raises:
        ProfileError: one of these cannot be, the file cannot be read, or is of another number of threads.
    """
    if objective not in ("size", "latency"):
        raise ProfileError(f"objective {objective!r}: expected size or latency.")
    if max_latency is None and objective == "size":
        if profile is not None:
            raise ProfileError(f"profile {profile}: a profile says how long kernels take; pass --objective latency.")
        return None
    ratio = None if max_latency is None else _ratio(max_latency)
    if profile is None:
        return LatencyGoal(ratio=ratio, threads=threads or 1)
    known = read_profile(Path(profile))
    if threads not in (None, known.threads):
        raise ProfileError(
            f"{profile} was measured with --threads {known.threads}, and {threads} is asked for. Leave --threads out, "
            f"or measure anew: guidedq profile --threads {threads}."
        )
    return LatencyGoal(ratio=ratio, profile=known, file=Path(profile).name, threads=known.threads)


def _ratio(text: str | float) -> float:
    try:
        ratio = float(str(text).strip().removesuffix("x"))
    except ValueError:
        ratio = math.nan
    if not 0 < ratio < math.inf:
        raise ProfileError(f"max-latency {text!r}: expected a share of the original's latency above 0, such as 0.6x.")
    return ratio


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
        latency: What is asked of the time that the model takes; `None` where size is all.
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
    latency: LatencyGoal | None = None
    progress: Progress = field(default_factory=SilentProgress)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def footprint(self) -> Footprint:
        """What the backend can hold of the recipe's formats."""
        return self.backend.footprint(self.model, self._formats)

    def own_rounding(self) -> ActivationRounding | None:
        """How the backend's runtime rounds activations on its own account."""
        return self.backend.own_rounding(self.model, self._formats)

    @property
    def entropy_code(self) -> EntropyCode | None:
        """How the backend stores codes by their entropy, if it does."""
        return self.backend.entropy_code(self.model, asked=self.recipe.coding == "entropy")

    @property
    def _formats(self) -> tuple[RoundedFormat, ...]:
        return self.recipe.formats(self.entropy_code)

    @property
    def original(self) -> OriginalOutputs:
        """What the model itself says, kept in the workspace."""
        return OriginalOutputs.of(self.model.program, self.model.digest, self.workspace)
