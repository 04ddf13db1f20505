"""Operators that reduce axes, order values along one, or accumulate along one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from guidedq.ir.onnx_interpreter.node import Node
from guidedq.ir.onnx_interpreter.shapes import axes_of

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def reducing(function: Reduction) -> Callable[..., Tensor]:
    """An operator that reduces the stated axes, or all; with `noop_with_empty_axes` and none stated, no axis."""

    def run(node: Node, values: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = axes_of(node, axes)
        if not chosen:
            chosen = () if node.integer("noop_with_empty_axes", 0) else tuple(range(values.ndim))
        keep = bool(node.integer("keepdims", 1))
        return function(values, chosen, keep)

    return run


def product(values: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Product over axes, in the dtype of the values."""
    for axis in sorted((axis % values.ndim for axis in axes), reverse=True):
        values = torch.prod(values, axis, keepdim=keep, dtype=values.dtype)
    return values


def sum_over(values: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Sum over axes, in the dtype of the values."""
    return values.sum(axes, keepdim=keep, dtype=values.dtype) if axes else values


def mean_over(values: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Mean over axes; of integers, rounded toward zero."""
    if not axes:
        return values
    if values.is_floating_point():
        return values.mean(axes, keepdim=keep)
    return values.double().mean(axes, keepdim=keep).to(values.dtype)


def largest_over(values: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Maximum over axes; of an empty axis, the least value there is."""
    return _extreme(values, axes, keep, torch.amax, largest=True)


def smallest_over(values: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Minimum over axes; of an empty axis, the greatest value there is."""
    return _extreme(values, axes, keep, torch.amin, largest=False)


def log_sum_exp(values: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Logarithm of the sum of exponentials over axes."""
    return torch.logsumexp(values, axes, keepdim=keep) if axes else values


def extreme_index(node: Node, values: Tensor, *, largest: bool) -> Tensor:
    """Index of the first (or last) extreme value along an axis."""
    axis = node.integer("axis", 0)
    last = bool(node.integer("select_last_index", 0))
    ordered = values.flip(axis) if last else values
    found = (torch.argmax if largest else torch.argmin)(ordered, axis, keepdim=bool(node.integer("keepdims", 1)))
    return values.shape[axis] - 1 - found if last else found


def top_k(node: Node, values: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The largest or smallest values along an axis, with their indices; equal values in order of index."""
    axis, largest = node.integer("axis", -1), bool(node.integer("largest", 1))
    ordered, indices = torch.sort(values, dim=axis, descending=largest, stable=True)
    return ordered.narrow(axis, 0, int(count)), indices.narrow(axis, 0, int(count))


def cumulative_sum(node: Node, values: Tensor, axis: Tensor) -> Tensor:
    """Running sum along an axis, forward or in reverse, with or without the value itself."""
    dimension = int(axis)
    ordered = values.flip(dimension) if node.integer("reverse", 0) else values
    total = torch.cumsum(ordered, dimension, dtype=values.dtype)
    if node.integer("exclusive", 0):
        total = total - ordered
    return total.flip(dimension) if node.integer("reverse", 0) else total


def _extreme(
    values: Tensor, axes: tuple[int, ...], keep: bool, function: Callable[..., Tensor], *, largest: bool
) -> Tensor:
    if not axes:
        return values
    if values.dtype is torch.bool:
        return _extreme(values.to(torch.uint8), axes, keep, function, largest=largest).bool()
    for axis in axes:
        if values.shape[axis] == 0:
            limits = torch.finfo(values.dtype) if values.is_floating_point() else torch.iinfo(values.dtype)
            bound = float("inf") if values.is_floating_point() else (limits.min if largest else limits.max)
            fill = -bound if largest and values.is_floating_point() else bound
            return torch.full_like(values.sum(axes, keepdim=keep), fill, dtype=values.dtype)
    return function(values, axes, keepdim=keep)


OPERATORS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "ArgMax": lambda node, values: extreme_index(node, values, largest=True),
    "ArgMin": lambda node, values: extreme_index(node, values, largest=False),
    "CumSum": cumulative_sum,
    "ReduceL1": reducing(lambda values, axes, keep: sum_over(values.abs(), axes, keep)),
    "ReduceL2": reducing(lambda values, axes, keep: sum_over(values * values, axes, keep).sqrt()),
    "ReduceLogSum": reducing(lambda values, axes, keep: sum_over(values, axes, keep).log()),
    "ReduceLogSumExp": reducing(log_sum_exp),
    "ReduceMax": reducing(largest_over),
    "ReduceMean": reducing(mean_over),
    "ReduceMin": reducing(smallest_over),
    "ReduceProd": reducing(product),
    "ReduceSum": reducing(sum_over),
    "ReduceSumSquare": reducing(lambda values, axes, keep: sum_over(values * values, axes, keep)),
    "TopK": top_k,
}
"""By operator type, in the domain of ONNX itself."""
