"""The submodules that read a weight: each holds it, and takes the activation first, so that hooks see x and y.

Uses of one weight hold the same parameter object, so `torch.func.functional_call` replaces it in all of them at once.
"""

from __future__ import annotations

from typing import final

from torch import Tensor, nn, where
from torch.nn import functional

from guidedq.errors import ModelError
from guidedq.ir.graph import Storage
from guidedq.ir.onnx_interpreter.neural import CONVOLUTIONS, transposed_convolution
from guidedq.ir.onnx_interpreter.node import Node
from guidedq.ir.onnx_interpreter.tensors import computed


@final
class LinearOperator(nn.Module):
    """`y = W x + b` for x `[..., in]`, with the weight as the model stores it, a matrix or several stacked."""

    def __init__(self, weight: nn.Parameter, storage: Storage) -> None:
        super().__init__()
        self.weight = weight
        self.storage = storage

    def forward(self, values: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product `[..., out]`; a 16-bit weight is computed in float32."""
        weight = computed(self.weight)
        matrix = weight.t() if self.storage is Storage.IN_OUT else weight.flatten(0, -2)
        if bias is None or bias.shape == matrix.shape[:1]:
            return functional.linear(values, matrix, bias)
        return functional.linear(values, matrix) + bias


@final
class ConvolutionOperator(nn.Module):
    """A convolution over one, two or three axes; its settings have the names of torch's own modules."""

    def __init__(
        self,
        weight: nn.Parameter,
        *,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups

    def forward(self, values: Tensor, bias: Tensor | None = None) -> Tensor:
        """From x `[sample, channel, ...]` to y; padding that differs at the two ends is in x already."""
        convolve = CONVOLUTIONS[len(self.kernel_size) - 1]
        settings = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return convolve(values, computed(self.weight), bias, **settings)


@final
class TransposedConvolutionOperator(nn.Module):
    """The transpose of a convolution, with the node's own settings."""

    def __init__(self, weight: nn.Parameter, node: Node) -> None:
        super().__init__()
        self.weight = weight
        self.node = node

    def forward(self, values: Tensor, bias: Tensor | None = None) -> Tensor:
        """From x `[sample, channel, ...]` to y."""
        return transposed_convolution(self.node, values, computed(self.weight), bias)


@final
class StatesOperator(nn.Module):
    """The products of a recurrent layer with its own states, which the layer itself forms, step by step.

    It is called once, before the first step. What it is given is filled in with what each step reads, and is whole when
    the layer is through; what it returns is added to the products, so its gradient is theirs. A hook sees x and the
    gradient of y as on any other operator.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.held = HeldWeight(weight)

    def forward(self, states: Tensor) -> Tensor:
        """From the states to come `[sample, step, group x in]` to zeros `[sample, step, out]`."""
        return states.new_zeros(*states.shape[:2], self.held.rows)


@final
class HeldWeight(nn.Module):
    """The weight of a recurrent layer, asked for once a pass, however many steps there are."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.rows = weight.shape[:-1].numel()

    def forward(self) -> Tensor:
        """The weight `[direction, gate x hidden, in]`; a 16-bit one in float32."""
        return computed(self.weight)


@final
class EmbeddingOperator(nn.Module):
    """Rows of the weight by index."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, indices: Tensor) -> Tensor:
        """Indices `[...]` to rows `[..., in]`; an index below zero counts from the end.

        Raises:
            ModelError: an index is out of range.
        """
        rows, whole = self.weight.shape[0], indices.long()
        if whole.numel() and (int(whole.max()) >= rows or int(whole.min()) < -rows):
            raise ModelError(
                f"an embedding of {rows} rows was asked for rows {int(whole.min())} to {int(whole.max())}."
            )
        return computed(functional.embedding(where(whole < 0, whole + rows, whole), self.weight))
