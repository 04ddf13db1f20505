"""The `prefix` corrector: round towards what makes up for the errors of the sites before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from guidedq.artifacts.samples import SampleSet
from guidedq.ir.graph import Site, UseKind
from guidedq.ir.model import Model
from guidedq.stages import AbstractCorrector

from .forward_pass import observed_inputs


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCorrector(AbstractCorrector):
    """Mismatch correction (GPTAQ, arXiv 2504.02692; Qronos, arXiv 2505.11695) with inputs from the quantized prefix.

    With `x` what a site reads in the original and `z` what it reads behind the already quantized sites, the best
    unrounded weight is `W E[x z^T] E[z z^T]^-1`. Every group of sites that reads one input costs two forward passes
    over the samples, so this is for small models, or few samples.

    Attributes:
        samples: Calibration samples that are run.
        ridge: Pull towards the original weight, as a part of the mean diagonal of `E[z z^T]`.
    """

    samples: int = 16
    ridge: float = 0.1

    @property
    def needs_prefix(self) -> bool:
        """It runs the model with what is quantized so far."""
        return True

    def targets(
        self, model: Model, samples: SampleSet, sites: Sequence[Site], prefix: Mapping[str, Tensor]
    ) -> Mapping[str, Float[Tensor, "out in"]]:
        """The weights times the correction of what they read; embeddings and grouped convolutions as they are."""
        linear = [site for site in sites if _is_correctable(site)]
        cross = {site.name: torch.zeros(site.columns, site.columns) for site in linear}
        square = {site.name: torch.zeros(site.columns, site.columns) for site in linear}
        for batch in samples.part(0, self.samples).batches(4) if linear and prefix else ():
            before = dict(observed_inputs(model, batch, linear, None))
            for name, behind in observed_inputs(model, batch, linear, prefix):
                flat, reference = behind.reshape(-1, behind.shape[-1]), before[name].reshape(-1, behind.shape[-1])
                square[name] += flat.t() @ flat
                cross[name] += (reference - flat).t() @ flat
        return {
            site.name: self._target(model.matrix(site), cross.get(site.name), square.get(site.name)) for site in sites
        }

    def _target(self, matrix: Tensor, cross: Tensor | None, square: Tensor | None) -> Float[Tensor, "out in"]:
        if cross is None or square is None or not bool(square.any()):
            return matrix
        damping = self.ridge * square.diagonal().mean()
        damped = (square + damping * torch.eye(len(square))).double()
        return matrix + matrix @ torch.linalg.solve(damped, cross.double().t()).t().float()


def _is_correctable(site: Site) -> bool:
    return len(site.uses) == 1 and site.uses[0].kind is not UseKind.EMBEDDING and site.input_groups == 1
