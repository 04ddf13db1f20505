"""The rounding of activations that a runtime does, emulated in torch so that it can be forecast and measured."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from guidedq.quant.integer import REDUCED_CODE, IntegerGrid, round_dynamically, round_rows, round_to_grid


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationRounding:
    """Which activations are rounded, and how.

    Attributes:
        operators: The operators whose inputs are rounded to symmetric int8 per block of inputs, `scale = max |x| /
            127`, with the block size of each: what ONNX Runtime's MatMulNBits does at accuracy level 4.
        dynamic: The operators whose inputs are rounded to uint8, with a grid for every call.
        inputs: The operators whose inputs are rounded to uint8, with the grid of each.
        values: The values that are rounded to uint8 for all that read them, with the grid of each.
        rows: Sites whose weights are rounded to int8 row by row, each with the axis of its rows in the stored shape.
        largest_code: Codes of these weights are from its negative to this.
    """

    operators: Mapping[str, int] = field(default_factory=dict[str, int])
    dynamic: tuple[str, ...] = ()
    inputs: Mapping[str, IntegerGrid] = field(default_factory=dict[str, IntegerGrid])
    values: Mapping[str, IntegerGrid] = field(default_factory=dict[str, IntegerGrid])
    rows: Mapping[str, int] = field(default_factory=dict[str, int])
    largest_code: int = REDUCED_CODE


def round_activations(values: Tensor, block_size: int) -> Tensor:
    """Round to symmetric int8 per block along the last axis, and back to float. The last block may be short."""
    columns = values.shape[-1]
    padded = nn.functional.pad(values, (0, -columns % block_size)).unflatten(-1, (-1, block_size))
    largest = padded.abs().amax(-1, keepdim=True)
    # multiplied by the reciprocal, as the runtime does: a quotient would differ in the last bit, and so in some codes
    codes = torch.round(padded * (127.0 / torch.where(largest > 0, largest, 1.0))).clamp_(-127, 127)
    return (codes * (largest / 127.0)).flatten(-2)[..., :columns]


@contextmanager
def rounding(module: nn.Module, paths: Mapping[str, str], activations: ActivationRounding | None) -> Generator[None]:
    """Round activations while the module runs.

    Args:
        module: Runs the model.
        paths: From the names of values to the submodules that they pass through unchanged.
        activations: What is rounded, and how.
    """
    if activations is None:
        yield
        return
    before: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, size in activations.operators.items():
        before[name] = _by_block(size)
    for name in activations.dynamic:
        before[name] = round_dynamically
    for name, grid in (*activations.inputs.items(), *((paths[v], grid) for v, grid in activations.values.items())):
        before[name] = _to_grid(grid)
    handles = [module.get_submodule(name).register_forward_pre_hook(_hook(rule)) for name, rule in before.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@final
class IntegerWeights(Mapping[str, Tensor]):
    """Weights by name, those of some sites rounded to int8 by rows when they are asked for."""

    def __init__(
        self, activations: ActivationRounding, weights: Mapping[str, Tensor], own: Callable[[str], Tensor]
    ) -> None:
        """Round the sites of `activations.rows`, whose `weights` default to the model's `own`."""
        self._rows, self._largest_code = activations.rows, activations.largest_code
        self._weights, self._own = weights, own

    def __getitem__(self, name: str) -> Tensor:
        weight = self._weights[name] if name in self._weights else self._own(name)
        return round_rows(weight.float(), self._rows[name], self._largest_code) if name in self._rows else weight

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._weights, *self._rows)))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _by_block(block_size: int) -> Callable[[Tensor], Tensor]:
    return lambda values: round_activations(values, block_size)


def _to_grid(grid: IntegerGrid) -> Callable[[Tensor], Tensor]:
    return lambda values: round_to_grid(values, grid)


def _hook(rule: Callable[[Tensor], Tensor]) -> Any:
    return lambda _module, arguments: (rule(arguments[0]), *arguments[1:])
