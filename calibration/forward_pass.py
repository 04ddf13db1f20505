"""Run the model forwards only: what every site reads, for guides that take no gradients and models that have none."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from guidedq.artifacts.samples import SampleSet
from guidedq.ir.graph import Site, Use, UseKind
from guidedq.ir.model import Model

from .events import Event, as_event


def forward_pass(model: Model, batch: SampleSet, sites: Sequence[Site], record: Callable[[Event], None]) -> float:
    """One forward pass; `record` hears an event without gradients for each use of each of `sites`.

    Positions that the batch's mask hides are set to zero, so that they add nothing to a second moment.

    Returns:
        Seconds that the pass took, without those spent in `record`.
    """
    start = time.perf_counter()
    uses = {use.operator: None for site in sites for use in site.uses}
    seen = model.program.observe(batch.inputs, uses)
    seconds = time.perf_counter() - start
    for site in sites:
        for use in site.uses:
            if use.operator in seen:
                record(_event(model, site, use, seen[use.operator], batch))
    return seconds


def _event(model: Model, site: Site, use: Use, inputs: Tensor, batch: SampleSet) -> Event:
    seen = hide(inputs, batch.mask) if use.kind is UseKind.LINEAR else inputs
    return as_event(site, use, model.program.operator(use.operator), seen, None, len(batch))


def hide(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """The inputs with zeros at masked positions, where they have positions."""
    if mask is None or inputs.shape[:-1] != mask.shape:
        return inputs
    return inputs * mask[..., None].to(inputs.dtype)
