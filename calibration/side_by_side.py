"""Run the original and a model that is still being quantized side by side, in one forward pass over batches twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Semaphore, Thread
from typing import Any, final

import torch
from torch import Tensor, nn

from guidedq.artifacts.samples import SampleSet
from guidedq.ir.graph import Site, Use
from guidedq.ir.model import Model
from guidedq.ir.program import TorchProgram, patched, swapped
from guidedq.memory import give_back

TOLERANCE = 1e-3
"""By so much, of the largest value, the same sample may differ at two places of a batch."""


@final
@dataclass(frozen=True, slots=True)
class Reading:
    """What an operator reads of one batch, in the original and in the quantized model."""

    batch: SampleSet
    original: Tensor
    quantized: Tensor


Visit = Callable[[Site, Use, Sequence[Reading]], Tensor]
"""A site, the operator that reads it, and what this reads; gives the stored weight of the quantized model."""


def run_side_by_side(model: Model, batches: Sequence[SampleSet], visit: Visit) -> None:
    """One forward pass of all batches, which ends when `visit` has told the weight of every quantizable site.

    It is asked when data first reach a site, and again at each further use of its weight. All batches come as far as a
    site before any goes beyond it: what they hold there is in memory at once, and nothing that lies between two sites
    is, but for one batch. Not visited are sites whose input does not have the samples along its first axis, which keep
    their own weight, and those that no data reach.

    Args:
        model: Its program must be a `TorchProgram`.
        batches: Calibration inputs.
        visit: Chooses weights.
    """
    assert isinstance(model.program, TorchProgram)
    sites = separable_sites(model, batches[0].part(0, 1)) if model.samples_at_once(batches[0]) is None else ()
    if not sites:
        return
    module, missing = model.program.module, {site.name for site in sites}
    halves = _Halves()
    with patched(_forwards(model.program, sites, halves)):
        walkers = [_Walker(module, batch, halves) for batch in batches]
        try:
            for walker in walkers:
                walker.go_on()
            while missing and (waiting := [walker for walker in walkers if walker.waits]):
                site, use = waiting[0].where
                here = [walker for walker in waiting if walker.where == (site, use)]
                weight = visit(site, use, [walker.reading for walker in here])
                missing.discard(site.name)
                for walker in here if missing else ():
                    walker.go_on(weight)
                    give_back()  # each thread has a heap of its own
        finally:
            for walker in walkers:
                walker.stop()


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


class _Stopped(BaseException):
    """Nobody asks any more: leaves the forward pass, whatever the model catches."""


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
class _Walker:
    """The forward pass of one batch, on a thread of its own, which runs only while `go_on` waits for it."""

    def __init__(self, module: nn.Module, batch: SampleSet, halves: _Halves) -> None:
        self.batch = batch
        self._module, self._halves = module, halves
        self._turn, self._done = Semaphore(0), Semaphore(0)
        self._found: tuple[Site, Use, Reading] | None = None
        self._weight: Tensor | None = None
        self._stopped = False
        self._error: BaseException | None = None
        self._thread = Thread(target=self._walk, daemon=True)

    @property
    def waits(self) -> bool:
        """For a weight."""
        return self._found is not None

    @property
    def where(self) -> tuple[Site, Use]:
        """The site that it stands at."""
        assert self._found is not None
        return self._found[:2]

    @property
    def reading(self) -> Reading:
        """What the operator reads there."""
        assert self._found is not None
        return self._found[2]

    def go_on(self, weight: Tensor | None = None) -> None:
        """Run with this weight to the next site, or to the end."""
        self._weight = weight
        self._halves.walker = self
        if not self._thread.is_alive():
            self._thread.start()
        self._turn.release()
        self._done.acquire()
        self._halves.walker = None
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Leave the forward pass, wherever it is."""
        self._stopped = True
        self._turn.release()
        if self._thread.ident is not None:
            self._thread.join()

    def meet(self, site: Site, use: Use, original: Tensor, quantized: Tensor) -> Tensor:
        """Called on the thread: wait for the weight."""
        self._found = site, use, Reading(self.batch, original, quantized)
        self._done.release()
        self._turn.acquire()
        if self._stopped:
            raise _Stopped
        assert self._weight is not None
        self._found = None
        return self._weight

    def _walk(self) -> None:
        self._turn.acquire()
        try:
            if not self._stopped:
                with torch.no_grad():
                    self._module(**_twice(self.batch))
        except _Stopped:
            pass
        except BaseException as error:  # raised again where it is waited for
            self._error = error
        self._done.release()


@final
class _Halves:
    """Runs each operator with the original weight on the first half and with the quantized one on the second."""

    def __init__(self) -> None:
        self.walker: _Walker | None = None
        """Whose turn it is; while nobody walks, operators are as they were."""

    def call(self, site: Site, use: Use, run: Callable[[Tensor, Tensor | None], Tensor], values: Tensor) -> Tensor:
        if self.walker is None:
            return run(values, None)
        original, quantized = (values, values) if len(values) == 1 else values.chunk(2)
        walker = self.walker
        weight = walker.meet(site, use, original, quantized)
        outputs = run(original, None), run(quantized, weight)
        if len(values) == 1:  # what all samples share
            outputs = tuple(output.expand(len(walker.batch), *output.shape[1:]) for output in outputs)
        return torch.cat(outputs)


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

        return caller.call(site, use, run, values)

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
