"""Convolutions and pools over one, two or three spatial axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from guidedq.ir.onnx_interpreter.node import Node

CONVOLUTIONS: tuple[Callable[..., Tensor], ...] = (functional.conv1d, functional.conv2d, functional.conv3d)
TRANSPOSED: tuple[Callable[..., Tensor], ...] = (
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)
MAX_POOLS: tuple[Callable[..., Tensor], ...] = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)


def spatial_pads(
    node: Node, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Padding before and after each spatial axis, worked out from `pads` or `auto_pad`."""
    mode = node.text("auto_pad", "NOTSET")
    rank = len(sizes)
    if mode in ("NOTSET", "VALID"):
        flat = node.integers("pads", [0] * 2 * rank) if mode == "NOTSET" else (0,) * 2 * rank
        return tuple(zip(flat[:rank], flat[rank:], strict=True))
    pads: list[tuple[int, int]] = []
    for size, length, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (length - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        pads.append((less, more) if mode == "SAME_UPPER" else (more, less))
    return tuple(pads)


def padded(values: Tensor, pads: Sequence[tuple[int, int]], fill: float = 0.0) -> Tensor:
    """The values with spatial padding, the same tensor if there is none."""
    flat = [amount for pair in reversed(pads) for amount in pair]
    return functional.pad(values, flat, value=fill) if any(flat) else values


def convolution(node: Node, values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution with stride, dilation, groups and any padding."""
    kernel, rank = weight.shape[2:], values.ndim - 2
    strides, dilations = node.integers("strides", [1] * rank), node.integers("dilations", [1] * rank)
    pads = spatial_pads(node, values.shape[2:], kernel, strides, dilations)
    return CONVOLUTIONS[rank - 1](
        padded(values, pads), weight, bias, stride=strides, dilation=dilations, groups=node.integer("group", 1)
    )


def transposed_convolution(node: Node, values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The transpose of a convolution; padding cuts the result, `output_shape` fixes its size."""
    rank = values.ndim - 2
    strides, dilations = node.integers("strides", [1] * rank), node.integers("dilations", [1] * rank)
    extra = node.integers("output_padding", [0] * rank)
    full = TRANSPOSED[rank - 1](
        values, weight, None, stride=strides, dilation=dilations, groups=node.integer("group", 1)
    )
    wanted = node.maybe_integers("output_shape")
    mode = node.text("auto_pad", "NOTSET")
    if wanted is None and mode.startswith("SAME"):
        wanted = tuple(size * stride for size, stride in zip(values.shape[2:], strides, strict=True))
    if wanted is None:
        flat = node.integers("pads", [0] * 2 * rank)
        cuts = [(-before, more - after) for before, after, more in zip(flat[:rank], flat[rank:], extra, strict=True)]
    else:
        cuts: list[tuple[int, int]] = []
        for size, more, length in zip(full.shape[2:], extra, wanted, strict=True):
            total = size + more - length
            before = total // 2 if mode == "SAME_UPPER" else total - total // 2
            cuts.append((-before, more - (total - before)))
    result = padded(full, cuts)
    return result if bias is None else result + bias.reshape(-1, *[1] * rank)


def max_pool(node: Node, values: Tensor) -> Tensor:
    """The largest value of each window; padding never wins."""
    kernel, strides, dilations = _window(node, values)
    pads, _ = _pool_pads(node, values, kernel, strides, dilations)
    exact = values if values.is_floating_point() else values.double()
    source = padded(exact, pads, -float("inf"))
    return MAX_POOLS[len(kernel) - 1](source, kernel, strides, 0, dilations).to(values.dtype)


def average_pool(node: Node, values: Tensor) -> Tensor:
    """The mean of each window, over the real values or over the padding as well (`count_include_pad`)."""
    kernel, strides, dilations = _window(node, values)
    pads, declared = _pool_pads(node, values, kernel, strides, dilations)
    ones = torch.ones(1, 1, *values.shape[2:], dtype=values.dtype)
    if node.integer("count_include_pad", 0):
        inside = [(before, min(wanted, after)) for (before, after), (_, wanted) in zip(pads, declared, strict=True)]
        ones = padded(ones, inside, 1.0)
        counts = padded(ones, [(0, after - kept) for (_, after), (_, kept) in zip(pads, inside, strict=True)])
    else:
        counts = padded(ones, pads)
    window = torch.ones(1, 1, *kernel, dtype=values.dtype)
    run: Any = CONVOLUTIONS[len(kernel) - 1]
    source = padded(values, pads).flatten(0, 1).unsqueeze(1)
    total = run(source, window, stride=strides, dilation=dilations)
    return (total / run(counts, window, stride=strides, dilation=dilations)).reshape(
        *values.shape[:2], *total.shape[2:]
    )


def _window(node: Node, values: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    rank = values.ndim - 2
    kernel = node.integers("kernel_shape", ())
    return kernel, node.integers("strides", [1] * rank), node.integers("dilations", [1] * rank)


def _pool_pads(
    node: Node, values: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[tuple[int, int]], tuple[tuple[int, int], ...]]:
    """Padding such that the windows that count fit exactly, and the padding that the node declares."""
    sizes = values.shape[2:]
    declared = spatial_pads(node, sizes, kernel, strides, dilations)
    pads: list[tuple[int, int]] = []
    for size, length, stride, dilation, (before, after) in zip(
        sizes, kernel, strides, dilations, declared, strict=True
    ):
        extent = (length - 1) * dilation + 1
        room = size + before + after - extent
        windows = (-(-room // stride) if node.integer("ceil_mode", 0) else room // stride) + 1
        if (windows - 1) * stride >= size + before:
            windows -= 1  # a window that would begin in the padding after the last value does not count
        pads.append((before, (windows - 1) * stride + extent - size - before))
    return pads, declared


OPERATORS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "AveragePool": average_pool,
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "MaxPool": max_pool,
}
"""By operator type, in the domain of ONNX itself."""
