"""Run the model forwards only: what every site reads, for guides that take no gradients and models that have none."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from guidedq.artifacts.samples import SampleSet
from guidedq.ir.graph import Site, UseKind
from guidedq.ir.model import Model
from guidedq.ir.program import TorchProgram

from .events import Event, as_event


def forward_pass(
    model: Model,
    batch: SampleSet,
    first_sample: int,
    sites: Sequence[Site],
    record: Callable[[Event], None],
    *,
    seed: int,
) -> float:
    """One forward pass; `record` hears an event without gradients for each use of each of `sites`.

    Positions that the batch's mask hides are set to zero, so that they add nothing to a second moment. Nothing is
    drawn: `first_sample` and `seed` are there for the likeness with `backward_pass`.

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
                module = model.program.module if isinstance(model.program, TorchProgram) else None
                operator = module.get_submodule(use.operator) if module is not None else None
                inputs = _hide(seen[use.operator], batch.mask) if use.kind is UseKind.LINEAR else seen[use.operator]
                record(as_event(site, use, operator, inputs, None))
    return seconds


def _hide(inputs: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None or inputs.shape[:-1] != mask.shape:
        return inputs
    return inputs * mask[..., None].to(inputs.dtype)
