"""Normalizations, as they run outside training. Statistics are computed in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from guidedq.ir.onnx_interpreter.node import Node

EPSILON = 1e-5
"""The default of every normalization's `epsilon`."""


def layer_normalization(
    node: Node, values: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Zero mean and unit variance over the axes from `axis` on, then scale and offset; mean and 1/deviation beside."""
    axes = _axes_from(node, values)
    mean = values.mean(axes, keepdim=True)
    centred = values - mean
    inverse = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + node.number("epsilon", EPSILON))
    result = centred * inverse * scale
    return (result if offset is None else result + offset), mean, inverse


def rms_normalization(node: Node, values: Tensor, scale: Tensor) -> Tensor:
    """Unit mean square over the axes from `axis` on, then scale."""
    square = (values * values).mean(_axes_from(node, values), keepdim=True)
    return values * torch.rsqrt(square + node.number("epsilon", EPSILON)) * scale


def batch_normalization(
    node: Node, values: Tensor, scale: Tensor, offset: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """Each channel by its stored mean and variance."""
    return functional.batch_norm(values, mean, variance, scale, offset, eps=node.number("epsilon", EPSILON))


def instance_normalization(node: Node, values: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Each channel of each sample by its own mean and variance."""
    return functional.instance_norm(values, weight=scale, bias=offset, eps=node.number("epsilon", EPSILON))


def group_normalization(node: Node, values: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Groups of channels by their own mean and variance; scale and offset per channel, before opset 21 per group."""
    groups, channels = node.integer("num_groups", 1), values.shape[1]
    if scale.numel() != channels:
        scale = scale.repeat_interleave(channels // groups)
        offset = offset.repeat_interleave(channels // groups)
    return functional.group_norm(values, groups, scale, offset, eps=node.number("epsilon", EPSILON))


def lp_normalization(node: Node, values: Tensor) -> Tensor:
    """Unit norm along an axis; zeros stay zeros."""
    norm = torch.linalg.vector_norm(values, ord=node.integer("p", 2), dim=node.integer("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(values), values / norm)


def mean_variance_normalization(node: Node, values: Tensor) -> Tensor:
    """Zero mean and unit variance over axes, 0, 2 and 3 by default."""
    axes = node.integers("axes", (0, 2, 3))
    centred = values - values.mean(axes, keepdim=True)
    epsilon = 1e-9  # the constant in the operator's specification
    return centred / ((centred * centred).mean(axes, keepdim=True).sqrt() + epsilon)


def local_response_normalization(node: Node, values: Tensor) -> Tensor:
    """Each value by the squares in neighbouring channels (Krizhevsky et al. 2012)."""
    size = node.integer("size", 1)
    channels = values.shape[1]
    rows = (values * values).reshape(values.shape[0], channels, -1).transpose(1, 2)
    padded = functional.pad(rows, ((size - 1) // 2, size // 2))
    squares = padded.unfold(2, size, 1).sum(-1).transpose(1, 2).reshape(values.shape)
    base = node.number("bias", 1.0) + node.number("alpha", 1e-4) / size * squares
    return values / base.pow(node.number("beta", 0.75))


def _axes_from(node: Node, values: Tensor) -> tuple[int, ...]:
    return tuple(range(node.integer("axis", -1) % values.ndim, values.ndim))


def global_pool(function: Callable[[Tensor], Tensor]) -> Callable[[Node, Tensor], Tensor]:
    """An operator that reduces all positions of each channel to one."""

    def run(_node: Node, values: Tensor) -> Tensor:
        flat = values.reshape(*values.shape[:2], prod(values.shape[2:]))
        return function(flat).reshape(*values.shape[:2], *[1] * (values.ndim - 2))

    return run


OPERATORS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "BatchNormalization": batch_normalization,
    "GlobalAveragePool": global_pool(lambda flat: flat.mean(-1)),
    "GlobalMaxPool": global_pool(lambda flat: flat.amax(-1)),
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": local_response_normalization,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
}
"""By operator type, in the domain of ONNX itself."""
