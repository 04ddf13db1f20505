"""The `none` tuner: codes stay as they were rounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.artifacts.samples import SampleSet
from guidedq.ir.model import Model
from guidedq.progress import Progress
from guidedq.stages import AbstractTuner


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NoTuner(AbstractTuner):
    """What the rounder made is written."""

    def tunes(self, model: Model) -> bool:
        """Never."""
        return False

    def tune(
        self,
        model: Model,
        samples: SampleSet,
        weights: tuple[QuantizedWeight, ...],
        *,
        room: Callable[[tuple[QuantizedWeight, ...]], int],
        seed: int,
        progress: Progress,
    ) -> tuple[QuantizedWeight, ...]:
        """The weights as they are."""
        return weights
