"""The `none` corrector: every weight is rounded to itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

from torch import Tensor

from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.artifacts.samples import SampleSet
from guidedq.ir.graph import Site
from guidedq.ir.model import Model
from guidedq.stages import AbstractCorrector


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NoCorrector(AbstractCorrector):
    """Sites are rounded independently of one another, at no cost."""

    def corrects(self, model: Model) -> bool:
        """Never."""
        return False

    def rounded(
        self, model: Model, samples: SampleSet, round_site: Callable[[Site, Tensor], QuantizedWeight]
    ) -> Iterator[QuantizedWeight]:
        """One after another, each made when it is asked for."""
        for site in model.graph.quantizable:
            yield round_site(site, model.matrix(site))
