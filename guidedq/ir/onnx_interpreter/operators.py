"""The submodules that read a weight: each holds it, and takes the activation first, so that hooks see x and y.

Uses of one weight hold the same parameter object, so `torch.func.functional_call` replaces it in all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from torch import Tensor, nn, where
from torch.nn import functional

from guidedq.errors import ModelError
from guidedq.ir.graph import Storage
from guidedq.ir.onnx_interpreter.tensors import computed


@final
class LinearOperator(nn.Module):
    """`y = W x + b` for x `[..., in]`, with the weight as the model stores it."""

    def __init__(self, weight: nn.Parameter, storage: Storage) -> None:
        super().__init__()
        self.weight = weight
        self.storage = storage

    def forward(self, values: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product `[..., out]`; a 16-bit weight is computed in float32."""
        weight = computed(self.weight)
        matrix = weight.t() if self.storage is Storage.IN_OUT else weight
        if bias is None or bias.shape == matrix.shape[:1]:
            return functional.linear(values, matrix, bias)
        return functional.linear(values, matrix) + bias


@final
class ConvolutionOperator(nn.Module):
    """A convolution over one or two axes; its settings have the names of torch's own modules."""

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
        convolve: Callable[..., Tensor] = functional.conv1d if len(self.kernel_size) == 1 else functional.conv2d
        settings = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return convolve(values, computed(self.weight), bias, **settings)


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
