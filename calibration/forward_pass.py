"""Run the model forwards only: what every site reads, for guides that take no gradients and models that have none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

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


def observed_inputs(
    model: Model, batch: SampleSet, sites: Sequence[Site], weights: Mapping[str, Tensor] | None
) -> Iterator[tuple[str, Tensor]]:
    """What each site's first use reads, `[sample, token, group, in]`, with `weights` in place of the model's own."""
    seen = model.program.observe(batch.inputs, {site.uses[0].operator: None for site in sites}, weights=weights)
    for site in sites:
        yield site.name, _event(model, site, site.uses[0], seen[site.uses[0].operator], batch).inputs


def _event(model: Model, site: Site, use: Use, inputs: Tensor, batch: SampleSet) -> Event:
    seen = _hide(inputs, batch.mask) if use.kind is UseKind.LINEAR else inputs
    return as_event(site, use, model.program.operator(use.operator), seen, None, len(batch))


def _hide(inputs: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None or inputs.shape[:-1] != mask.shape:
        return inputs
    return inputs * mask[..., None].to(inputs.dtype)
