"""What runs a model: the torch program that every frontend lifts to, and the interface for those that cannot be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from guidedq.ir.activation_rounding import ActivationRounding, IntegerWeights, rounding

Batch = Mapping[str, Tensor]
"""Named model inputs, the first axis of each is the sample."""


class AbstractProgram(ABC):
    """Runs a model on a batch, with other weights if asked."""

    @property
    @abstractmethod
    def differentiable(self) -> bool:
        """Whether gradients of the output with respect to every operator's output can be had."""

    @abstractmethod
    def parameter(self, name: str) -> Tensor:
        """The stored weight called `name`, not to be written into."""

    @abstractmethod
    def operator(self, name: str) -> nn.Module:
        """The module that runs the operator called `name`: it takes the activation first and holds its `weight`."""

    @abstractmethod
    def predict(
        self,
        batch: Batch,
        *,
        weights: Mapping[str, Tensor] | None = None,
        activations: ActivationRounding | None = None,
    ) -> Tensor:
        """The model's output in float32, without gradients.

        Args:
            batch: Named inputs, `[sample, ...]`.
            weights: Weights that replace the model's own for this call, by name, in the stored shape.
            activations: Emulate this rounding of activations.
        """

    @abstractmethod
    def observe(
        self, batch: Batch, operators: Mapping[str, None], *, weights: Mapping[str, Tensor] | None = None
    ) -> Mapping[str, Tensor]:
        """The first input of each of `operators` while the model runs on `batch`, without gradients."""


class AbstractWriter(ABC):
    """A module that can also continue token sequences without running the whole sequence again for every token."""

    @abstractmethod
    def write(
        self, tokens: Int64[Tensor, "sequence start"], length: int, generator: torch.Generator
    ) -> Int64[Tensor, "sequence length"]:
        """Continue the sequences to `length` tokens, sampled at temperature 1 from the model's own distribution."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TorchProgram(AbstractProgram):
    """A torch module whose sites are read by submodules: `module(**batch)` returns one tensor.

    Every operator named by a site's use is a submodule of that name; its forward takes the activation first and
    returns one tensor. Parameters are frozen (no gradients), the module is in evaluation mode and runs in float32.

    Attributes:
        module: Takes named inputs, returns one tensor.
        aliases: From a site's name to the path of its parameter, where these differ (an initializer's name may hold
            characters that a path cannot).
        values: From the names of values between operators to the submodules that they pass through unchanged.
    """

    module: nn.Module
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    values: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def differentiable(self) -> bool:
        """Always: autograd runs through the module."""
        return True

    def parameter(self, name: str) -> Tensor:
        """The module's parameter or buffer called `name`."""
        owner, _, leaf = self.aliases.get(name, name).rpartition(".")
        return getattr(self.module.get_submodule(owner), leaf)

    def operator(self, name: str) -> nn.Module:
        """The submodule called `name`."""
        return self.module.get_submodule(name)

    def predict(
        self,
        batch: Batch,
        *,
        weights: Mapping[str, Tensor] | None = None,
        activations: ActivationRounding | None = None,
    ) -> Tensor:
        """The output in float32; `weights` stand in wherever a submodule holds the parameter, tied ones everywhere.

        A weight is asked of the mapping each time that a submodule runs, so a mapping may make its values when asked.
        """
        held = IntegerWeights(activations, weights or {}, self.parameter) if activations else weights or {}
        with torch.no_grad(), self.replaced(held), rounding(self.module, self.values, activations):
            output: Tensor = self.module(**batch)
        return output.float()

    @contextmanager
    def replaced(self, weights: Mapping[str, Tensor]) -> Generator[None]:
        """Let every submodule that holds one of the parameters run with the weight that stands in for it.

        Gradients flow to the weights where there are any.
        """
        named = {id(self.parameter(name)): name for name in weights}
        forwards: dict[nn.Module, Any] = {}
        for module in self.module.modules():
            held = {leaf: named[id(p)] for leaf, p in module.named_parameters(recurse=False) if id(p) in named}
            if held:
                forwards[module] = _forward_with(module, held, weights)
        with patched(forwards):
            yield

    def observe(
        self, batch: Batch, operators: Mapping[str, None], *, weights: Mapping[str, Tensor] | None = None
    ) -> Mapping[str, Tensor]:
        """Run with forward hooks; an operator that is called twice is observed at its last call."""
        seen: dict[str, Tensor] = {}

        def remember(name: str) -> Any:
            return lambda _module, arguments: seen.__setitem__(name, arguments[0].detach())

        handles = [self.module.get_submodule(name).register_forward_pre_hook(remember(name)) for name in operators]
        try:
            self.predict(batch, weights=weights)
        finally:
            for handle in handles:
                handle.remove()
        return seen


@contextmanager
def patched(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Generator[None]:
    """Let modules run these functions in place of their own `forward` meanwhile."""
    for module, forward in forwards.items():
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.__dict__["forward"]


@contextmanager
def swapped(table: dict[str, Any], values: Mapping[str, Any]) -> Generator[None]:
    """Let a module's table of tensors hold other values meanwhile."""
    kept = {leaf: table[leaf] for leaf in values}
    table.update(values)
    try:
        yield
    finally:
        table.update(kept)


def _forward_with(module: nn.Module, held: Mapping[str, str], weights: Mapping[str, Tensor]) -> Any:
    forward, table = module.forward, module.__dict__["_parameters"]

    def call(*arguments: Any, **keywords: Any) -> Any:
        with swapped(table, {leaf: weights[name] for leaf, name in held.items()}):
            return forward(*arguments, **keywords)

    return call
