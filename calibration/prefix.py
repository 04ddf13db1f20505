"""The `prefix` corrector: round towards what makes up for the errors of the sites before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.artifacts.samples import SampleSet
from guidedq.ir.graph import Site, Use, UseKind
from guidedq.ir.model import Model
from guidedq.ir.program import TorchProgram
from guidedq.stages import AbstractCorrector

from .events import as_event
from .forward_pass import hide
from .side_by_side import Reading, run_side_by_side

IMAGE_GROWTH = 8
"""The first layers' activations are larger than the image, by about so much."""
CORRECTABLE = (UseKind.LINEAR, UseKind.CONVOLUTION)
"""What a batch meets all at once: a recurrent layer's states come step by step."""
TOKENS_AT_ONCE = 2048
"""Of a batch, or so many images."""
MOST_BATCHES = 16
"""Each has a thread, and threads of its own to compute with."""
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Pull towards the original weight, as a part of the mean diagonal of the sum of `z z^T`."""
PATCH_VALUES = 4_000_000
"""Of patches that are formed at once."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCorrector(AbstractCorrector):
    """Mismatch correction (GPTAQ, arXiv 2504.02692; Qronos, arXiv 2505.11695) with inputs from the quantized prefix.

    With `x` what a site reads in the original and `z` what it reads behind the already quantized sites, the best
    unrounded weight is `W E[x z^T] E[z z^T]^-1`. Original and quantized model run side by side, each site is rounded
    when data first reach it: one forward pass over the samples, twice, for the whole model. Embeddings, grouped
    convolutions, recurrent layers, experts (the two models may send them other tokens), tied weights and programs that
    torch cannot run are rounded to themselves.

    A correction is a regression on what was seen, and with few samples it makes things worse. So it is pulled towards
    the original weight, by as much as makes half of the samples best corrected by the other half; where nothing does
    them good, a site is rounded to itself.

    Attributes:
        samples: Calibration samples that are run, at most.
        values: Of the widest input of a site, all samples together, at most, or a quarter of the model's parameters if
            that is more: they are in memory at once.
    """

    samples: int = 128
    values: int = 8_000_000

    def corrects(self, model: Model) -> bool:
        """Where torch runs the model and any of its sites can be corrected."""
        return isinstance(model.program, TorchProgram) and any(map(_is_correctable, model.graph.quantizable))

    def rounded(
        self, model: Model, samples: SampleSet, round_site: Callable[[Site, Tensor], QuantizedWeight]
    ) -> Iterator[QuantizedWeight]:
        """Where any is corrected, all are rounded before the first is given: a byte for each weight is held."""
        found: dict[str, QuantizedWeight] = {}
        count = self._count(model, samples)
        if count > 1 and self.corrects(model):
            walk = _Walk(model, round_site, found)
            size = max(TOKENS_AT_ONCE // samples.tokens_per_sample, -(-count // MOST_BATCHES))
            size = max(1, min(size, count // 2))
            run_side_by_side(model, list(samples.part(0, count - count % size).batches(size)), walk.visit)
        for site in model.graph.quantizable:
            yield found[site.name] if site.name in found else round_site(site, model.matrix(site))

    def _count(self, model: Model, samples: SampleSet) -> int:
        """How many samples fit in memory."""
        tokens = samples.tokens_per_sample
        if tokens > 1:
            size = tokens * max(site.columns for site in model.graph.quantizable)
        else:
            size = IMAGE_GROWTH * sum(values[0].numel() for values in samples.inputs.values())
        return max(1, min(self.samples, len(samples), max(self.values, model.parameters // 4) // size))


@final
class _Walk:
    """Rounds what data reach."""

    def __init__(
        self,
        model: Model,
        round_site: Callable[[Site, Tensor], QuantizedWeight],
        found: dict[str, QuantizedWeight],
    ) -> None:
        self._model = model
        self._round = round_site
        self._found = found
        self._groups = {name: group for group in model.graph.shared_inputs for name in group}
        self._last: tuple[tuple[str, ...], Tensor | None] | None = None

    def visit(self, site: Site, use: Use, readings: Sequence[Reading]) -> Tensor:
        """Round the site where it is new; its weight in the model's shape."""
        if site.name not in self._found:
            matrix = self._model.matrix(site)
            if _is_correctable(site) and readings[0].original is not readings[0].quantized:
                correction = self._correction(site, use, readings)
                matrix = matrix if correction is None else matrix + matrix @ correction
            self._found[site.name] = self._round(site, matrix)
        return site.stored(self._found[site.name].dequantize())

    def _correction(self, site: Site, use: Use, readings: Sequence[Reading]) -> Float[Tensor, "in in"] | None:
        """Once for all sites that read the same; `None` where none does good."""
        group = self._groups.get(site.name, (site.name,))
        if self._last is None or self._last[0] != group:
            halves = _Regression(site.columns), _Regression(site.columns)
            for number, reading in enumerate(readings):
                original = self._parts(site, use, reading.batch, reading.original)
                quantized = self._parts(site, use, reading.batch, reading.quantized)
                for x, z in zip(original, quantized, strict=True):
                    halves[number % 2].add(x, z)
            metric = torch.zeros(site.columns, site.columns)
            for name in group:
                matrix = self._model.matrix(self._model.graph.site(name))
                metric.addmm_(matrix.t(), matrix)
            self._last = group, _held_out_choice(*halves, metric)
        return self._last[1]

    def _parts(self, site: Site, use: Use, batch: SampleSet, values: Tensor) -> Iterator[Float[Tensor, "token in"]]:
        """What the matrix multiplies; patches some samples at a time: they are larger than what they are made of."""
        module, samples = self._model.program.operator(use.operator), len(batch)
        if use.kind is UseKind.LINEAR:
            yield as_event(site, use, module, hide(values, batch.mask), None, samples).inputs.flatten(0, -2)
            return
        size = max(1, PATCH_VALUES // (site.columns * values[0, 0].numel()))
        for part in values.split(size):
            yield as_event(site, use, module, part, None, len(part)).inputs.flatten(0, -2)


@final
class _Regression:
    """Sums over tokens, of `z z^T` and `(x - z) z^T`."""

    def __init__(self, columns: int) -> None:
        self.square = torch.zeros(columns, columns)
        self.cross = torch.zeros(columns, columns)

    def add(self, x: Float[Tensor, "token in"], z: Float[Tensor, "token in"]) -> None:
        self.square.addmm_(z.t(), z)
        self.cross.addmm_((x - z).t(), z)

    def solved(self, ridge: float) -> Float[Tensor, "in in"]:
        """What a matrix is multiplied by, to be added to it."""
        damping = ridge * self.square.diagonal().mean()
        if not float(damping) > 0 or not bool(self.cross.isfinite().all()):
            return torch.zeros_like(self.cross)
        damped = self.square.double()
        damped.diagonal().add_(damping)
        factor = torch.linalg.cholesky(damped)
        return torch.cholesky_solve(self.cross.double().t(), factor).t().float()

    def change(self, correction: Tensor) -> Float[Tensor, "in in"]:
        """What these tokens' second moments of `x - z` become under a correction, less what they are."""
        mixed = correction @ self.cross.t()
        return torch.linalg.multi_dot((correction, self.square, correction.t())) - mixed - mixed.t()


def _held_out_choice(
    one: _Regression, other: _Regression, metric: Float[Tensor, "in in"]
) -> Float[Tensor, "in in"] | None:
    """The correction from both, at the ridge at which that from one leaves the other the least error in this metric."""
    changes = {ridge: float(other.change(one.solved(ridge)).mul_(metric).sum()) for ridge in RIDGES}
    ridge = min(changes, key=changes.__getitem__)
    if not changes[ridge] < 0.0:
        return None
    one.square += other.square
    one.cross += other.cross
    return one.solved(ridge)


def _is_correctable(site: Site) -> bool:
    (use, *others) = site.uses
    return not others and use.kind in CORRECTABLE and not use.routed and site.input_groups == 1
