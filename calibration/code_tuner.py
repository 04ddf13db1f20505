"""The `codes` tuner: all codes of the model learn from the divergence of its output, end to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import final

import torch

from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.artifacts.samples import SampleSet
from guidedq.ir.model import Model
from guidedq.ir.program import TorchProgram
from guidedq.memory import give_back
from guidedq.progress import Progress
from guidedq.stages import AbstractTuner

from .backward_pass import run_backwards, scratch
from .cheaper_codes import smallest_change
from .divergence import divergence_gradient
from .latent import LatentWeight, LatentWeights
from .listening import recomputed, recomputes, repeated_blocks

FIRST_STEPS, LAST_STEPS = 4, 12
REPRICED, RESPONSE = 8, 60.0
"""Steps between two looks at the codes' length, and by how much of its excess the logarithm of the price grows."""
BYTE_BITS = 8
FARTHEST = 100.0
"""From the first price."""
WORST_GROWTH = 2.0
"""Where each flip costs more than its gradient says, as in small convolutional networks, all comes to worse at once."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTuner(AbstractTuner):
    """Straight-through tuning of the codes by the divergence from the original; grids and formats stay.

    Behind every code stands a real number, which starts where the original weight lies in the code's cell and is moved
    by Adam (Kingma and Ba 2015) along the gradient at the rounded weights (the straight-through estimator; SignRound,
    arXiv 2309.05516, does so block by block). A few percent of the codes flip, and what the sites' errors do together
    is seen as no local objective sees it. Each step runs the original forwards and the quantized model forwards and
    backwards. Programs that torch cannot run are not tuned, and neither are models so large that the gradients of some
    thousand tokens tell little of each weight: there noise flips more than it mends.

    Attributes:
        steps: Of the optimizer.
        tokens: Of a step, at most, but for its first sample.
        samples: Of a step, at most.
        rate: Of learning, in codes a step, at first; it falls to zero as a cosine.
        largest: Models of more parameters are not tuned.
        start: How far from the middle of its cell towards the original weight a number starts.
    """

    steps: int = 256
    tokens: int = 512
    samples: int = 16
    rate: float = 0.005
    largest: int = 4_000_000
    start: float = 0.8

    def tunes(self, model: Model) -> bool:
        """Where gradients can be had and tell enough."""
        return model.program.differentiable and self.steps > 0 and model.parameters <= self.largest

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
        """Run the steps; the same weights with other codes, or the very ones given where that does no good."""
        assert isinstance(model.program, TorchProgram)
        sites = {weight.name: model.graph.site(weight.name) for weight in weights}
        latents = {
            weight.name: LatentWeight(sites[weight.name], weight, model.matrix(sites[weight.name]), self.start)
            for weight in weights
        }
        progress.start("tune", self.steps)
        batches = self._batches(samples, model.samples_at_once(samples) or self.samples, seed)
        divergences: list[float] = []
        price = _Price(latents.values(), room(weights))
        for step in range(self.steps):
            rate = self.rate * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
            now = LatentWeights(latents, step + 1, rate, price.of_a_bit(divergences))
            divergences.append(_step(model, model.program, next(batches), now))
            progress.advance()
            if _diverges(divergences):
                progress.notice("tuning does this model no good and was given up")
                return weights
        return smallest_change(
            lambda pull: tuple(latents[weight.name].quantized(pull) for weight in weights), lambda now: room(now) >= 0
        )

    def _batches(self, samples: SampleSet, most: int, seed: int) -> Iterator[SampleSet]:
        """Without end, in an order that changes from epoch to epoch."""
        generator = torch.Generator().manual_seed(seed)
        size = max(1, min(most, self.samples, self.tokens // samples.tokens_per_sample, len(samples)))
        while True:
            order = torch.randperm(len(samples), generator=generator)
            for start in range(0, len(samples) - size + 1, size):
                yield samples.pick(order[start : start + size])


@final
class _Price:
    """What a bit is worth while codes learn: so much that they take no more bits than they may.

    Without it they would: noise alone moves codes apart, and a thousand steps made stories260K's a tenth longer. The
    first price is what a bit is worth where the divergence falls fourfold with every bit a weight; it is raised while
    codes are too long, and lowered while they might be longer.
    """

    def __init__(self, latents: Collection[LatentWeight], room: int) -> None:
        self._latents = latents
        bits, self._codes = self._lengths()
        self._allowed = max(bits + BYTE_BITS * room, 1.0)
        self._factor = 1.0

    def of_a_bit(self, divergences: Sequence[float]) -> float:
        """In loss, after these steps."""
        if len(divergences) < FIRST_STEPS or not self._codes:
            return 0.0
        if len(divergences) % REPRICED == 0:
            excess = self._lengths()[0] / self._allowed - 1.0
            factor = self._factor * math.exp(min(max(RESPONSE * excess, -1.0), 1.0))
            self._factor = min(max(factor, 1.0 / FARTHEST), FARTHEST)
        return self._factor * 2.0 * math.log(2.0) * fmean(divergences[-LAST_STEPS:]) / self._codes

    def _lengths(self) -> tuple[float, int]:
        lengths = [latent.entropy_coded() for latent in self._latents]
        return sum(bits for bits, _ in lengths), sum(codes for _, codes in lengths)


def _diverges(divergences: Sequence[float]) -> bool:
    """Whether the last steps' divergence is far above that of the first steps, before anything had flipped."""
    if len(divergences) < FIRST_STEPS + LAST_STEPS:
        return False
    return fmean(divergences[-LAST_STEPS:]) > WORST_GROWTH * fmean(divergences[:FIRST_STEPS])


def _step(model: Model, program: TorchProgram, batch: SampleSet, latents: LatentWeights) -> float:
    """One step on one batch; the divergence before it."""
    original = program.predict(batch.inputs)
    blocks = repeated_blocks(program.module) if recomputes(model) else ()
    with program.replaced(latents), recomputed(program.module, blocks):
        with torch.enable_grad(), latents.forward_pass():
            outputs = [program.module(**batch.inputs)]
        cotangents = [scratch(outputs[0])]
        divergence = divergence_gradient(model.objective, original, cotangents[0], batch)
        del original
        give_back()
        run_backwards(outputs, cotangents)
    give_back()
    return divergence
