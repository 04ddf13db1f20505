"""The `none` corrector: every weight is rounded to itself (default)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor

from guidedq.artifacts.samples import SampleSet
from guidedq.ir.graph import Site
from guidedq.ir.model import Model
from guidedq.stages import AbstractCorrector


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NoCorrector(AbstractCorrector):
    """Sites are rounded independently of one another, at no cost."""

    @property
    def needs_prefix(self) -> bool:
        """Nothing is run."""
        return False

    def targets(
        self, model: Model, samples: SampleSet, sites: Sequence[Site], prefix: Mapping[str, Tensor]
    ) -> Mapping[str, Float[Tensor, "out in"]]:
        """The weights as they are."""
        return {site.name: model.matrix(site) for site in sites}
