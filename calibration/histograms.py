"""Histograms of activations: first the range of every place, then counts and squared gradients by bin."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from guidedq.artifacts.activations import BINS, ActivationHistogram, ActivationPlace
from guidedq.artifacts.samples import SampleSet
from guidedq.errors import CalibrationError
from guidedq.ir.model import Model
from guidedq.ir.program import TorchProgram
from guidedq.memory import give_back
from guidedq.progress import Progress

from .backward_pass import batch_size, run_both_ways


def collect_histograms(
    model: Model,
    samples: SampleSet,
    places: Sequence[ActivationPlace],
    *,
    gradients: bool,
    seed: int,
    progress: Progress,
) -> tuple[ActivationHistogram, ...]:
    """A histogram for each of `places`, from two passes over the samples; sums are taken in float64.

    Args:
        model: Its program must be a `TorchProgram`.
        samples: Calibration inputs.
        places: Where to look.
        gradients: Whether the second pass goes backwards too; the sensitivities are zero if not.
        seed: Seeds the random signs and cotangents.
        progress: Told about samples done.

    Raises:
        CalibrationError: an activation is not finite.
    """
    assert isinstance(model.program, TorchProgram)
    counters = [_Counter(place=place) for place in places]
    size = batch_size(model, samples)
    progress.start("activations", 2 * len(samples))
    with torch.no_grad():
        for batch in samples.batches(size):
            with _heard(model.program, counters, _Counter.widen, with_gradients=False):
                model.program.module(**batch.inputs)
            progress.advance(len(batch))
    for counter in counters:
        counter.open()
    for number, batch in enumerate(samples.batches(size)):
        if gradients:
            with _heard(model.program, counters, _Counter.count, with_gradients=True):
                run_both_ways(model, batch, number * size, seed=seed)
        else:
            with torch.no_grad(), _heard(model.program, counters, _Counter.count, with_gradients=False):
                model.program.module(**batch.inputs)
        progress.advance(len(batch))
        give_back()
    units = model.objective.units(samples)
    return tuple(counter.histogram(units) for counter in counters)


@final
@dataclass(slots=True, kw_only=True)
class _Counter:
    """What is summed at one place."""

    place: ActivationPlace
    low: float = 0.0
    high: float = 0.0
    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    sensitivity: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))

    def widen(self, values: Tensor, gradients: Tensor | None) -> None:
        """Let the range hold these values."""
        low, high = (float(extreme) for extreme in values.aminmax())
        if not (torch.isfinite(torch.tensor([low, high])).all()):
            raise CalibrationError(f"{self.place.name}: an activation is not finite on the calibration data.")
        self.low, self.high = min(self.low, low), max(self.high, high)

    def open(self) -> None:
        """The range is known."""
        if self.high == self.low:
            self.high = self.low + 1.0  # nothing but zeros was seen: any range holds them

    def count(self, values: Tensor, gradients: Tensor | None) -> None:
        """Add values to their bins."""
        scaled = (values.flatten().double() - self.low) * (BINS / (self.high - self.low))
        bins = scaled.long().clamp_(0, BINS - 1)
        self.counts += torch.bincount(bins, minlength=BINS)
        if gradients is not None:
            squares = gradients.flatten().double().square()
            self.sensitivity += torch.bincount(bins, weights=squares, minlength=BINS)

    def histogram(self, units: int) -> ActivationHistogram:
        """What was found, sensitivities per unit."""
        sensitivity = (self.sensitivity / units).float()
        return ActivationHistogram(low=self.low, high=self.high, counts=self.counts.float(), sensitivity=sensitivity)


@contextmanager
def _heard(
    program: TorchProgram,
    counters: Sequence[_Counter],
    record: Callable[[_Counter, Tensor, Tensor | None], None],
    *,
    with_gradients: bool,
) -> Generator[None]:
    """Record every place's values, with what answers to them, while the model runs.

    Of a place that several operators read, one hears the values, and the gradients of all are added up first.
    """
    handles: list[Any] = []
    for counter in counters:
        paths = counter.place.operators or (program.values[counter.place.name],)
        ear = _Ear(counter, record, len(paths), with_gradients)
        handles += [program.module.get_submodule(path).register_forward_pre_hook(ear.hear) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@final
class _Ear:
    """Brings the values of a place together with the gradients of all that read them."""

    def __init__(
        self,
        counter: _Counter,
        record: Callable[[_Counter, Tensor, Tensor | None], None],
        readers: int,
        with_gradients: bool,
    ) -> None:
        """Hear one place for `record`, read by so many operators."""
        self._counter, self._record = counter, record
        self._readers, self._with_gradients = readers, with_gradients
        self._heard = 0
        self._answers: list[Tensor] = []

    def hear(self, _module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        """A hook before a module is called."""
        values: Tensor = arguments[0]
        self._heard += 1
        if not self._with_gradients:
            if self._heard % self._readers == 1 or self._readers == 1:
                self._record(self._counter, values, None)
            return None
        own = values.view_as(values) if values.requires_grad else values.detach().requires_grad_()
        own.register_hook(lambda gradients: self._answer(values.detach(), gradients))
        return (own, *arguments[1:])

    def _answer(self, values: Tensor, gradients: Tensor) -> None:
        self._answers.append(gradients.detach())
        if len(self._answers) == self._readers:
            total = torch.stack([answer.reshape(values.shape) for answer in self._answers]).sum(0)
            self._answers.clear()
            with torch.no_grad():
                self._record(self._counter, values, total)
