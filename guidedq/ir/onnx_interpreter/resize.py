"""Resize: nearest, linear and cubic, axis by axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from guidedq.ir.onnx_interpreter.node import Node

POLICIES = ("stretch", "not_larger", "not_smaller")


def refusal(node: Node) -> str | None:
    """Why this node cannot be run, `None` if it can."""
    mode = node.text("coordinate_transformation_mode", "half_pixel")
    if mode == "tf_crop_and_resize":
        return "the coordinate transformation tf_crop_and_resize"
    if node.integer("antialias", 0):
        return "antialias"
    return None


def resize(
    node: Node,
    values: Tensor,
    _region: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Other sizes along axes, by interpolation along one axis after another."""
    axes = [axis % values.ndim for axis in node.integers("axes", tuple(range(values.ndim)))]
    lengths = [values.shape[axis] for axis in axes]
    if scales is not None and scales.numel():
        factors = scales.tolist()
        targets = [int(length * factor) for length, factor in zip(lengths, factors, strict=True)]
    else:
        assert sizes is not None
        targets, factors = _from_sizes(node, lengths, sizes.tolist())
    for axis, target, factor in zip(axes, targets, factors, strict=True):
        if target != values.shape[axis] or factor != 1:
            values = _along(node, values, axis, target, factor)
    return values


def _from_sizes(node: Node, lengths: Sequence[int], sizes: Sequence[int]) -> tuple[list[int], list[float]]:
    factors = [size / length for size, length in zip(sizes, lengths, strict=True)]
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return list(sizes), factors
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [int(length * factor + 0.5) for length in lengths], [factor] * len(lengths)


def _along(node: Node, values: Tensor, axis: int, target: int, factor: float) -> Tensor:
    length = values.shape[axis]
    places = _coordinates(node.text("coordinate_transformation_mode", "half_pixel"), length, target, factor)
    mode = node.text("mode", "nearest")
    if mode == "nearest":
        nearest = _nearest(node.text("nearest_mode", "round_prefer_floor"), places)
        return values.index_select(axis, nearest.long().clamp(0, length - 1))
    taps = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
    base = places.floor()
    fraction = places - base
    weights = [_linear(fraction - tap) if mode == "linear" else _cubic(node, fraction - tap) for tap in taps]
    indices = [base.long() + tap for tap in taps]
    if mode == "cubic" and node.integer("exclude_outside", 0):
        weights = [weight * ((index >= 0) & (index < length)) for weight, index in zip(weights, indices, strict=True)]
        total = torch.stack(weights).sum(0)
        weights = [weight / total for weight in weights]
    shape = [-1 if dimension == axis else 1 for dimension in range(values.ndim)]
    parts = [
        values.index_select(axis, index.clamp(0, length - 1)) * weight.to(values.dtype).reshape(shape)
        for weight, index in zip(weights, indices, strict=True)
    ]
    return torch.stack(parts).sum(0)


def _coordinates(mode: str, length: int, target: int, factor: float) -> Tensor:
    """Where each result lies in the source, in float64."""
    places = torch.arange(target, dtype=torch.float64)
    if mode == "align_corners":
        return places * (length - 1) / (target - 1) if target > 1 else places * 0
    if mode == "asymmetric":
        return places / factor
    if mode == "pytorch_half_pixel" and target == 1:
        return places * 0
    if mode == "half_pixel_symmetric":
        adjusted = target / (factor * length)
        return length / 2 * (1 - adjusted) + (places + 0.5) / factor - 0.5
    return (places + 0.5) / factor - 0.5


def _nearest(mode: str, places: Tensor) -> Tensor:
    if mode == "floor":
        return places.floor()
    if mode == "ceil":
        return places.ceil()
    return (places - 0.5).ceil() if mode == "round_prefer_floor" else (places + 0.5).floor()


def _linear(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp_min(0)


def _cubic(node: Node, distance: Tensor) -> Tensor:
    """The cubic convolution kernel (Keys 1981)."""
    a, d = node.number("cubic_coeff_a", -0.75), distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


OPERATORS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {"Resize": resize}
"""By operator type, in the domain of ONNX itself."""
