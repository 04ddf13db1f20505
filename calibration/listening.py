"""Hearing what operators read and how the loss answers, with or without keeping the activations in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from guidedq.errors import CalibrationError
from guidedq.ir.graph import Site, Use
from guidedq.ir.model import Model
from guidedq.ir.program import patched
from guidedq.memory import give_back

from .events import Event, as_event

TIDY_BLOCKS = 4
TIDY_EVENTS = 32
"""Blocks in the forward pass, and events in the backward pass, after which freed memory is given back: what is kept
lies between what is freed, and the holes would add up."""
RECOMPUTED_PARAMETERS = 50_000_000
"""Parameters from which activations are recomputed: there a sequence's activations weigh more than the model."""


def recomputes(model: Model) -> bool:
    """Whether a model is so large that its blocks run again in the backward pass."""
    return model.parameters >= RECOMPUTED_PARAMETERS


@final
class Ear:
    """Pairs the input of every operator with the gradient of its output.

    Inside recomputed blocks an input is not kept in the forward pass: it comes by again when the block is run anew,
    just before or just after the gradient, and whichever is second completes the event.
    """

    def __init__(self, record: Callable[[Event], None], blocks: Sequence[str], samples: int) -> None:
        """Hear a batch of `samples` with `record`; operators under `blocks` are recomputed."""
        self._samples = samples
        self.seconds = 0.0
        """Spent in `record`."""
        self._record = record
        self._blocks = tuple(f"{block}." for block in blocks)
        self._backwards = False
        self._heard = 0
        self._inputs: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._called: set[str] = set()

    def turn_back(self) -> None:
        """The forward pass is over."""
        self._backwards = True

    @contextmanager
    def listening(self, module: nn.Module, sites: Sequence[Site]) -> Generator[None]:
        """Hear all uses of these sites."""
        handles: list[Any] = []
        for site in sites:
            for use in site.uses:
                operator = module.get_submodule(use.operator)
                recomputed = use.operator.startswith(self._blocks) if self._blocks else False
                if recomputed:
                    handles.append(operator.register_forward_pre_hook(self._returning(site, use)))
                handles.append(operator.register_forward_hook(self._passing(site, use, kept=not recomputed)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _returning(self, site: Site, use: Use) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if self._backwards and (gradients := self._gradients.pop(use.operator, None)) is not None:
                self._hear(site, use, module, arguments[0].detach(), gradients)
            elif self._backwards:
                self._inputs[use.operator] = arguments[0].detach()

        return hook

    def _passing(self, site: Site, use: Use, *, kept: bool) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            # a copy, not the leaf itself: some models add to it in place
            output = output if output.requires_grad else output.requires_grad_().clone()
            inputs = arguments[0].detach() if kept else None
            if self._backwards:
                return output
            if not kept and use.operator in self._called:
                raise CalibrationError(
                    f"{use.operator} runs twice in one pass; set guide.recompute=never for this model."
                )
            self._called.add(use.operator)

            def answer(gradients: Tensor) -> None:
                seen = inputs if inputs is not None else self._inputs.pop(use.operator, None)
                if seen is None:
                    self._gradients[use.operator] = gradients.detach()
                else:
                    self._hear(site, use, module, seen, gradients.detach())

            output.register_hook(answer)
            return output

        return hook

    def _hear(self, site: Site, use: Use, module: nn.Module, inputs: Tensor, gradients: Tensor) -> None:
        start = time.perf_counter()
        with torch.no_grad():
            self._record(as_event(site, use, module, inputs, gradients, self._samples))
        self._heard += 1
        if self._heard % TIDY_EVENTS == 0:
            give_back()
        self.seconds += time.perf_counter() - start


def repeated_blocks(module: nn.Module) -> tuple[str, ...]:
    """Names of the repeated units: members of the outermost module lists of two or more."""
    found: list[str] = []
    for name, child in module.named_modules():
        if isinstance(child, nn.ModuleList) and len(child) > 1 and not name.startswith(tuple(f"{f}." for f in found)):
            found += [f"{name}.{index}" for index in range(len(child))]
    return tuple(found)


@contextmanager
def recomputed(module: nn.Module, blocks: Sequence[str]) -> Generator[None]:
    """Run these submodules under activation checkpointing, and give back what they free as they go."""
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    for number, block in enumerate(module.get_submodule(name) for name in blocks):
        run = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        forwards[block] = _tidy(run) if number % TIDY_BLOCKS == 0 else run
    with patched(forwards):
        yield


def _tidy(run: Callable[..., Any]) -> Callable[..., Any]:
    def tidied(*arguments: Any, **named: Any) -> Any:
        give_back()
        return run(*arguments, **named)

    return tidied
