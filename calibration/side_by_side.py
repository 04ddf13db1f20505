"""Run the original and a model that is still being quantized side by side, in one forward pass over a batch twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, final

import torch
from torch import Tensor, nn

from guidedq.artifacts.samples import SampleSet
from guidedq.ir.graph import Site, Use
from guidedq.ir.model import Model
from guidedq.ir.program import TorchProgram, patched, swapped

TOLERANCE = 1e-3
"""By so much, of the largest value, the same sample may differ at two places of a batch."""

Visit = Callable[[Site, Use, Tensor, Tensor], Tensor]
"""A site, the operator that reads it, what this reads in the original and in the quantized model; gives the stored
weight of the quantized model."""


def run_side_by_side(model: Model, batch: SampleSet, visit: Visit) -> None:
    """One forward pass, which ends when `visit` has told the weight of every quantizable site.

    It is asked when data first reach a site, and again at each further use of its weight. Not visited are sites whose
    input does not have the samples along its first axis, which keep their own weight, and those that no data reach.

    Args:
        model: Its program must be a `TorchProgram`.
        batch: Calibration inputs.
        visit: Chooses weights.
    """
    assert isinstance(model.program, TorchProgram)
    sites = separable_sites(model, batch.part(0, 1)) if model.samples_at_once(batch) is None else ()
    if not sites:
        return
    with patched(_forwards(model.program, sites, _Halves(sites, visit))), torch.no_grad(), suppress(_Finished):
        model.program.module(**_twice(batch))


def separable_sites(model: Model, batch: SampleSet) -> tuple[Site, ...]:
    """The quantizable sites whose every use reads the samples along the first axis of its input, or what all share.

    The products of a recurrent layer with its states are formed by the layer: their weight is none of them. Where the
    model takes no batch of another size there is none.
    """
    assert isinstance(model.program, TorchProgram)
    checks = _Checks()
    program = model.program
    sites = [site for site in model.graph.quantizable if all(_holds(program, site, use) for use in site.uses)]
    try:
        with patched(_forwards(program, sites, checks)), torch.no_grad():
            model.program.module(**_twice(batch))
    except (RuntimeError, ValueError):  # whatever a baked-in batch size leads to
        return ()
    return tuple(site for site in sites if all(use.operator in checks.passed for use in site.uses))


class _Finished(Exception):  # noqa: N818  # not an error: leaves the forward pass
    """Every weight is known."""


@final
class _Checks:
    """Sees which operators find the two halves of their input alike."""

    def __init__(self) -> None:
        self.passed: set[str] = set()

    def call(self, site: Site, use: Use, run: Callable[[Tensor, Tensor | None], Tensor], values: Tensor) -> Tensor:
        if len(values) == 1 or (len(values) % 2 == 0 and _alike(*values.chunk(2))):
            self.passed.add(use.operator)
        return run(values, None)


@final
class _Halves:
    """Runs each operator with the original weight on the first half and with the quantized one on the second."""

    def __init__(self, sites: Sequence[Site], visit: Visit) -> None:
        self._visit = visit
        self._missing = {site.name for site in sites}

    def call(self, site: Site, use: Use, run: Callable[[Tensor, Tensor | None], Tensor], values: Tensor) -> Tensor:
        original, quantized = (values, values) if len(values) == 1 else values.chunk(2)
        weight = self._visit(site, use, original, quantized)
        self._missing.discard(site.name)
        if not self._missing:
            raise _Finished
        return torch.cat((run(original, None), run(quantized, weight)))


def _forwards(
    program: TorchProgram, sites: Sequence[Site], caller: _Checks | _Halves
) -> Mapping[nn.Module, Callable[..., Any]]:
    """What lets `caller` run the operators that read these sites."""
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    for site in sites:
        own = program.parameter(site.name)
        for use in site.uses:
            module = program.operator(use.operator)
            leaf = next(name for name, held in _tensors(module) if held is own)
            forwards[module] = _forward(module, leaf, site, use, caller)
    return forwards


def _forward(module: nn.Module, leaf: str, site: Site, use: Use, caller: _Checks | _Halves) -> Any:
    forward = module.forward
    table = module.__dict__["_parameters" if leaf in module.__dict__["_parameters"] else "_buffers"]

    def instead(values: Tensor, *arguments: Any, **named: Any) -> Tensor:
        def run(part: Tensor, weight: Tensor | None) -> Tensor:
            with swapped(table, {} if weight is None else {leaf: weight}):
                return forward(part, *arguments, **named)

        del module.__dict__["forward"]  # whoever is called may run the operator itself
        try:
            return caller.call(site, use, run, values)
        finally:
            module.__dict__["forward"] = instead

    return instead


def _holds(program: TorchProgram, site: Site, use: Use) -> bool:
    own = program.parameter(site.name)
    return any(held is own for _, held in _tensors(program.operator(use.operator)))


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _twice(batch: SampleSet) -> dict[str, Tensor]:
    return {name: torch.cat((values, values)) for name, values in batch.inputs.items()}


def _alike(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    return float((one - other).abs().amax()) <= TOLERANCE * float(one.abs().amax())
