"""The `prefix` corrector: round towards what makes up for the errors of the sites before."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
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
from .side_by_side import run_side_by_side

FEWEST_IMAGES = 64
"""Positions of one image are too alike to count each."""
IMAGE_GROWTH = 8
"""The first layers' activations are larger than the image, by about so much."""
CORRECTABLE = (UseKind.LINEAR, UseKind.CONVOLUTION)
"""What a batch meets all at once: a recurrent layer's states come step by step."""
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

    A correction is a regression on what was seen, and with few samples it makes things worse: sites that read more
    inputs than a sixteenth of the tokens are rounded to themselves, and so are images' sites under 64 images.

    Attributes:
        samples: Calibration samples that are run, at most.
        values: Of the widest input of a site, all samples together, at most: they are in memory at once.
        tokens_per_input: A site is corrected where so many tokens were seen for each of its inputs.
        ridge: Pull towards the original weight, as a part of the mean diagonal of `E[z z^T]`.
    """

    samples: int = 128
    values: int = 8_000_000
    tokens_per_input: int = 16
    ridge: float = 0.1

    def rounded(
        self, model: Model, samples: SampleSet, round_site: Callable[[Site, Tensor], QuantizedWeight]
    ) -> Iterator[QuantizedWeight]:
        """Where any is corrected, all are rounded before the first is given: a byte for each weight is held."""
        found: dict[str, QuantizedWeight] = {}
        count = self._count(model, samples)
        corrected = {
            site.name
            for site in model.graph.quantizable
            if _is_correctable(site) and self._sees_enough(site, samples, count)
        }
        if corrected and isinstance(model.program, TorchProgram):
            walk = _Walk(self.ridge, model, samples.part(0, count), corrected, round_site, found)
            run_side_by_side(model, walk.batch, walk.visit)
        for site in model.graph.quantizable:
            yield found[site.name] if site.name in found else round_site(site, model.matrix(site))

    def _count(self, model: Model, samples: SampleSet) -> int:
        """How many samples fit in memory."""
        tokens = samples.tokens_per_sample
        if tokens > 1:
            size = tokens * max(site.columns for site in model.graph.quantizable)
        else:
            size = IMAGE_GROWTH * sum(values[0].numel() for values in samples.inputs.values())
        return max(1, min(self.samples, len(samples), self.values // size))

    def _sees_enough(self, site: Site, samples: SampleSet, count: int) -> bool:
        tokens = samples.tokens_per_sample
        return count * tokens >= self.tokens_per_input * site.columns if tokens > 1 else count >= FEWEST_IMAGES


@final
class _Walk:
    """Rounds what data reach."""

    def __init__(
        self,
        ridge: float,
        model: Model,
        batch: SampleSet,
        corrected: Collection[str],
        round_site: Callable[[Site, Tensor], QuantizedWeight],
        found: dict[str, QuantizedWeight],
    ) -> None:
        self.batch = batch
        self._ridge = ridge
        self._model = model
        self._corrected = corrected
        self._round = round_site
        self._found = found
        self._groups = {name: group for group in model.graph.shared_inputs for name in group}
        self._last: tuple[tuple[str, ...], Tensor] | None = None

    def visit(self, site: Site, use: Use, original: Tensor, quantized: Tensor) -> Tensor:
        """Round the site where it is new; its weight in the model's shape."""
        if site.name not in self._found:
            matrix = self._model.matrix(site)
            if site.name in self._corrected and original is not quantized:
                matrix = matrix + matrix @ self._correction(site, use, original, quantized)
            self._found[site.name] = self._round(site, matrix)
        return site.stored(self._found[site.name].dequantize())

    def _correction(self, site: Site, use: Use, original: Tensor, quantized: Tensor) -> Float[Tensor, "in in"]:
        """`E[(x - z) z^T] (E[z z^T] + damping)^-1`, once for all sites that read the same."""
        group = self._groups.get(site.name, (site.name,))
        if self._last is None or self._last[0] != group:
            cross, square = torch.zeros(site.columns, site.columns), torch.zeros(site.columns, site.columns)
            for x, z in zip(self._parts(site, use, original), self._parts(site, use, quantized), strict=True):
                square.addmm_(z.t(), z)
                cross.addmm_((x - z).t(), z)
            self._last = group, _solved(cross, square, self._ridge)
        return self._last[1]

    def _parts(self, site: Site, use: Use, values: Tensor) -> Iterator[Float[Tensor, "token in"]]:
        """What the matrix multiplies; patches some samples at a time: they are larger than what they are made of."""
        module, samples = self._model.program.operator(use.operator), len(self.batch)
        if use.kind is UseKind.LINEAR:
            yield as_event(site, use, module, hide(values, self.batch.mask), None, samples).inputs.flatten(0, -2)
            return
        size = max(1, PATCH_VALUES // (site.columns * values[0, 0].numel()))
        for part in values.split(size):
            yield as_event(site, use, module, part, None, len(part)).inputs.flatten(0, -2)


def _solved(cross: Tensor, square: Tensor, ridge: float) -> Tensor:
    damping = ridge * square.diagonal().mean()
    if not float(damping) > 0 or not bool(cross.isfinite().all()):
        return torch.zeros_like(cross)
    factor = torch.linalg.cholesky(square.double() + damping * torch.eye(len(square), dtype=torch.float64))
    return torch.cholesky_solve(cross.double().t(), factor).t().float()


def _is_correctable(site: Site) -> bool:
    (use, *others) = site.uses
    return not others and use.kind in CORRECTABLE and not use.routed and site.input_groups == 1
