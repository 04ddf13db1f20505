"""Operators that pick values by index, write them by index, or make indices and patterns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor

from guidedq.errors import ModelError
from guidedq.ir.onnx_interpreter.node import Node
from guidedq.ir.onnx_interpreter.tensors import computed, computing_dtype, dtype_of

SCATTER_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""ONNX's names of what happens to the old value, and torch's."""


def gather(node: Node, values: Tensor, indices: Tensor) -> Tensor:
    """The slices at `indices` along an axis."""
    axis = node.integer("axis", 0) % values.ndim
    if indices.ndim == 0:
        return values.select(axis, int(indices))
    return values[(slice(None),) * axis + (indices.long(),)]


def gather_elements(node: Node, values: Tensor, indices: Tensor) -> Tensor:
    """The value at each index along an axis, all other indices kept."""
    axis = node.integer("axis", 0)
    return torch.gather(values, axis, _nonnegative(indices, values.shape[axis]))


def gather_nd(node: Node, values: Tensor, indices: Tensor) -> Tensor:
    """The slices at tuples of indices, the last axis of `indices`, sample by sample over `batch_dims`."""
    return values[_coordinates(indices, values, node.integer("batch_dims", 0))]


def scatter_nd(node: Node, values: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """A copy with the slices at tuples of indices written, or reduced with what is there."""
    reduction = node.text("reduction", "none")
    where = _coordinates(indices, values, 0)
    if reduction == "none":
        return values.index_put(where, updates)
    if reduction == "add":
        return values.index_put(where, updates, accumulate=True)
    strides = torch.tensor([prod(values.shape[axis + 1 : indices.shape[-1]]) for axis in range(indices.shape[-1])])
    rows = sum(index * stride for index, stride in zip(where, strides.tolist(), strict=True))
    assert isinstance(rows, Tensor)
    flat = values.reshape(prod(values.shape[: indices.shape[-1]]), -1)
    changed = flat.index_reduce(0, rows.flatten(), updates.reshape(rows.numel(), -1), SCATTER_REDUCTIONS[reduction])
    return changed.reshape(values.shape)


def scatter_elements(node: Node, values: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """A copy with the value at each index along an axis written, or reduced with what is there."""
    axis = node.integer("axis", 0)
    places = _nonnegative(indices, values.shape[axis])
    reduction = node.text("reduction", "none")
    if reduction == "none":
        return values.scatter(axis, places, updates)
    return values.scatter_reduce(axis, places, updates, reduce=SCATTER_REDUCTIONS[reduction])


def nonzero(_node: Node, values: Tensor) -> Tensor:
    """Indices of the values that are not zero, one row per axis."""
    return torch.nonzero(values).t()


def compress(node: Node, values: Tensor, condition: Tensor) -> Tensor:
    """The slices along an axis where `condition` holds."""
    axis = node.attributes.get("axis")
    if axis is None:
        values, axis = values.flatten(), 0
    return values.index_select(axis, torch.nonzero(condition).flatten())


def one_hot(node: Node, indices: Tensor, depth: Tensor, pair: Tensor) -> Tensor:
    """`pair[1]` at each index along a new axis, else `pair[0]`; an index out of range leaves all at `pair[0]`."""
    length = int(depth.item())
    axis = node.integer("axis", -1)
    axis = axis + indices.ndim + 1 if axis < 0 else axis
    whole = indices.long()
    whole = torch.where(whole < 0, whole + length, whole).unsqueeze(axis)
    places = torch.arange(length).reshape([-1 if dimension == axis else 1 for dimension in range(whole.ndim)])
    return torch.where(whole == places, pair[1], pair[0])


def trilu(node: Node, values: Tensor, diagonal: Tensor | None = None) -> Tensor:
    """The upper or lower triangle of each matrix."""
    shift = 0 if diagonal is None else int(diagonal)
    return torch.triu(values, shift) if node.integer("upper", 1) else torch.tril(values, shift)


def ranged(_node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Numbers from `start` to below `limit`, in the dtype of `start`."""
    first, last, step = start.item(), limit.item(), delta.item()
    if (last - first) * step <= 0:
        return torch.empty(0, dtype=start.dtype)
    return torch.arange(first, last, step, dtype=start.dtype)


def constant_of_shape(node: Node, sizes: Tensor) -> Tensor:
    """One value all over; a float zero by default."""
    value = node.attributes.get("value")
    fill = torch.zeros(1) if value is None else computed(value)
    return fill.reshape(()).expand(sizes.tolist()).clone()


def eye_like(node: Node, values: Tensor) -> Tensor:
    """Ones on a diagonal, in the shape of a matrix."""
    dtype = computing_dtype(dtype_of(node.integer("dtype", 0))) if "dtype" in node.attributes else values.dtype
    rows, columns = values.shape
    places = torch.arange(columns) - torch.arange(rows).unsqueeze(1)
    return (places == node.integer("k", 0)).to(dtype)


def _nonnegative(indices: Tensor, length: int) -> Tensor:
    whole = indices.long()
    if whole.numel() and (int(whole.max()) >= length or int(whole.min()) < -length):
        raise ModelError(f"indices from {int(whole.min())} to {int(whole.max())} in an axis of {length}.")
    return torch.where(whole < 0, whole + length, whole)


def _coordinates(indices: Tensor, values: Tensor, batch_axes: int) -> tuple[Tensor, ...]:
    parts = tuple(_nonnegative(part, values.shape[batch_axes + axis]) for axis, part in enumerate(indices.unbind(-1)))
    rank = indices.ndim - 1
    grids = [
        torch.arange(values.shape[axis]).reshape([-1 if dimension == axis else 1 for dimension in range(rank)])
        for axis in range(batch_axes)
    ]
    return (*grids, *parts)


OPERATORS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "Compress": compress,
    "ConstantOfShape": constant_of_shape,
    "EyeLike": eye_like,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "NonZero": nonzero,
    "OneHot": one_hot,
    "Range": ranged,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Trilu": trilu,
}
"""By operator type, in the domain of ONNX itself."""
