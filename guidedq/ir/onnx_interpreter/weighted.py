"""A node that reads a quantizable weight: what it does with it, and the submodule that runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from guidedq.ir.graph import Storage, UseKind
from guidedq.ir.onnx_interpreter.neural import padded, spatial_pads
from guidedq.ir.onnx_interpreter.node import Node
from guidedq.ir.onnx_interpreter.operators import (
    ConvolutionOperator,
    EmbeddingOperator,
    LinearOperator,
    StatesOperator,
    TransposedConvolutionOperator,
)
from guidedq.ir.onnx_interpreter.recurrent import states_read

INPUT_WEIGHT, STATE_WEIGHT = 1, 2
"""Which inputs of a recurrent layer its weights are."""
PARTS = {INPUT_WEIGHT: "W", STATE_WEIGHT: "R"}
"""What the specification calls them."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedNode:
    """A node that reads a site.

    Attributes:
        node: The node.
        index: Which of its inputs is the weight.
        site: Name of the constant that is its weight.
        kind: What it does with the weight.
        storage: How the stored weight maps to `[out, in]`.
        shape: Shape of the stored weight.
        activation: Name of the value that meets the weight; of a recurrent layer what comes in.
        bias: Name of the value that is added, if any.
        spread: For an embedding whose indices are the same for all samples, `[1, position]`: whether to look them up
            sample by sample, so that gradients can be told apart.
    """

    node: Node
    index: int
    site: str
    kind: UseKind
    storage: Storage
    shape: tuple[int, ...]
    activation: str
    bias: str | None = None
    spread: bool = False

    @property
    def operator(self) -> str:
        """Name of the submodule that holds the weight: the node's, in which a recurrent layer has one for each."""
        return f"{self.node.name}.{PARTS[self.index]}" if self.kind is UseKind.RECURRENT else self.node.name

    @property
    def groups(self) -> int:
        """Blocks of rows that read their own inputs."""
        if self.kind is UseKind.RECURRENT and self.index == STATE_WEIGHT:
            return self.shape[0] * states_read(self.node)
        return self.node.integer("group", 1) if self.kind is UseKind.CONVOLUTION else 1

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution, which needs no padding of what it reads."""
        return self.storage is Storage.IN_OUT_KERNEL

    @property
    def geometry(self) -> Mapping[str, Any]:
        """The settings of a convolution, under the names of torch's modules; nothing for other kinds."""
        if self.kind is not UseKind.CONVOLUTION or self.transposed:
            return {}
        rank = len(self.shape) - 2
        pads = self._pads()
        even = pads is not None and all(before == after for before, after in pads)
        return {
            "kernel_size": self.shape[2:],
            "stride": self.node.integers("strides", [1] * rank),
            "padding": tuple(before for before, _ in pads) if pads and even else (0,) * rank,
            "dilation": self.node.integers("dilations", [1] * rank),
            "groups": self.groups,
        }

    def module(self, weight: nn.Parameter) -> nn.Module:
        """The submodule that runs it."""
        if self.kind is UseKind.EMBEDDING:
            return EmbeddingOperator(weight)
        if self.transposed:
            return TransposedConvolutionOperator(weight, self.node)
        if self.kind is UseKind.CONVOLUTION:
            return ConvolutionOperator(weight, **self.geometry)
        if self.kind is UseKind.RECURRENT and self.index == STATE_WEIGHT:
            return StatesOperator(weight)
        return LinearOperator(weight, self.storage)

    def operand(self, values: Tensor, samples: int) -> Tensor:
        """What the submodule is given, its first axis the sample.

        That is the activation; for Gemm times `alpha`; for a convolution with the padding that is not even; and where
        samples and positions are flattened into one axis, `[sample x position, in]`, with the two apart. Indices that
        are to be spread are repeated for every sample.
        """
        if self.spread and values.ndim and (values.ndim == 1 or values.shape[0] == 1):
            return values.expand(samples, *values.shape[values.ndim > 1 :])
        if self.node.operator == "Gemm" and (alpha := self.node.number("alpha", 1.0)) != 1:
            values = values * alpha
        if self.kind is UseKind.LINEAR and values.ndim == 2 and values.shape[0] != samples:
            return values.unflatten(0, (samples, -1)) if samples and not values.shape[0] % samples else values
        if self.kind is not UseKind.CONVOLUTION or self.transposed or any(self.geometry["padding"]):
            return values
        geometry = self.geometry
        pads = spatial_pads(self.node, values.shape[2:], self.shape[2:], geometry["stride"], geometry["dilation"])
        return padded(values, pads)

    def offset(self, bias: Tensor | None) -> Tensor | None:
        """What the submodule adds: the bias, scaled by Gemm's `beta`."""
        if bias is None or self.node.operator != "Gemm":
            return bias
        beta = self.node.number("beta", 1.0)
        return bias if beta == 1 else bias * beta

    def _pads(self) -> tuple[tuple[int, int], ...] | None:
        """The padding of a convolution, `None` if it depends on the size of the activation."""
        if self.node.text("auto_pad", "NOTSET").startswith("SAME"):
            return None
        rank = len(self.shape) - 2
        ones = [1] * rank
        return spatial_pads(self.node, ones, ones, ones, ones)


def reads(node: Node, weighted: Sequence[WeightedNode]) -> tuple[str, ...]:
    """The outer values that a node needs besides the weights that submodules hold."""
    if not weighted:
        return node.reads
    held = {entry.index for entry in weighted}
    return tuple(name for index, name in enumerate(node.inputs) if name and index not in held)


def by_node(weighted: Sequence[WeightedNode]) -> Mapping[str, tuple[WeightedNode, ...]]:
    """What each node, by name, reads."""
    found: dict[str, tuple[WeightedNode, ...]] = {}
    for entry in weighted:
        found[entry.node.name] = (*found.get(entry.node.name, ()), entry)
    return found
