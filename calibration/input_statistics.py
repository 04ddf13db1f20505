"""What is known of a use without gradients: second moments of what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from guidedq.artifacts.guidance import QuadraticTerm
from guidedq.ir.graph import Site, Use, UseKind

from .events import Event
from .statistics import AbstractStatistics, Sums, assembled, row_groups, second_moment, token_frequencies


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class InputStatistics(AbstractStatistics):
    """Second moments of the inputs; how often each row of an embedding is read."""

    def needs_gradients(self) -> bool:
        """Never."""
        return False

    def sums(self, event: Event) -> Mapping[str, Tensor]:
        """`hessian` (strips of [input_group, in, in]), or `counts` [vocabulary]."""
        if event.use.kind is UseKind.EMBEDDING:
            return {"counts": event.rows_read.reshape(-1).bincount(minlength=event.site.rows).double()}
        return second_moment("hessian", event.inputs.flatten(0, 1).transpose(0, 1))

    def term(self, site: Site, use: Use, sums: Sums, units: int) -> QuadraticTerm:
        """Rows of a linear use count alike; rows of an embedding as often as they are read."""
        if use.kind is UseKind.EMBEDDING:
            hessian, assignment = torch.eye(site.columns)[None], torch.zeros(site.rows, dtype=torch.int64)
            weight = token_frequencies(sums["counts"]).float()
        else:
            hessian, assignment, weight = assembled("hessian", sums) / units, row_groups(site, 1), torch.ones(site.rows)
        error = torch.zeros(site.rows)
        return QuadraticTerm(hessian=hessian, row_group=assignment, row_weight=weight, row_weight_error=error)
