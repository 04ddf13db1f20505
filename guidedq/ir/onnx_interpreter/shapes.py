"""Operators that look at shapes and move values about without computing on them. Shapes are exact int64."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from guidedq.ir.onnx_interpreter.node import Node


def axes_of(node: Node, axes: Tensor | None) -> tuple[int, ...] | None:
    """The axes from the input, or from the attribute that older operator sets have; `None` if neither is there."""
    return tuple(axes.reshape(-1).tolist()) if axes is not None else node.maybe_integers("axes")


def shape(node: Node, values: Tensor) -> Tensor:
    """The sizes, or a slice of them."""
    sizes = list(values.shape)[node.integer("start", 0) : node.attributes.get("end")]
    return torch.tensor(sizes, dtype=torch.int64)


def size(_node: Node, values: Tensor) -> Tensor:
    """The number of values."""
    return torch.tensor(values.numel(), dtype=torch.int64)


def reshape(node: Node, values: Tensor, sizes: Tensor) -> Tensor:
    """Another shape; zero copies a size unless `allowzero`, and -1 is worked out."""
    wanted = sizes.tolist()
    if not node.integer("allowzero", 0):
        wanted = [values.shape[index] if wanted_size == 0 else wanted_size for index, wanted_size in enumerate(wanted)]
    return values.reshape(wanted)


def flatten(node: Node, values: Tensor) -> Tensor:
    """A matrix: the axes before `axis`, and the others."""
    axis = node.integer("axis", 1)
    axis = axis + values.ndim if axis < 0 else axis
    rows = 1
    for length in values.shape[:axis]:
        rows *= length
    return values.reshape(rows, values.numel() // rows if rows else 0)


def squeeze(node: Node, values: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without the stated axes of length one, or without any such."""
    chosen = axes_of(node, axes)
    return values.squeeze() if chosen is None else values.squeeze(chosen)


def unsqueeze(node: Node, values: Tensor, axes: Tensor | None = None) -> Tensor:
    """With axes of length one put in, counted in the result."""
    chosen = axes_of(node, axes) or ()
    rank = values.ndim + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        values = values.unsqueeze(axis)
    return values


def transpose(node: Node, values: Tensor) -> Tensor:
    """Axes in another order, reversed by default."""
    return values.permute(node.integers("perm", tuple(reversed(range(values.ndim)))))


def expand(_node: Node, values: Tensor, sizes: Tensor) -> Tensor:
    """Broadcast with a shape."""
    return values.expand(torch.broadcast_shapes(values.shape, tuple(sizes.tolist())))


def concatenate(node: Node, *values: Tensor) -> Tensor:
    """One tensor of several, along an axis."""
    return torch.cat(values, dim=node.integer("axis", 0))


def split(node: Node, values: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Parts along an axis: of given lengths, or of one length with a shorter last one."""
    axis = node.integer("axis", 0)
    lengths = tuple(sizes.tolist()) if sizes is not None else node.maybe_integers("split")
    if lengths is None:
        count = node.integer("num_outputs", len(node.outputs))
        total = values.shape[axis]
        length = -(-total // count)
        lengths = tuple(min(length, total - start) for start in range(0, length * count, length))
    return torch.split(values, list(lengths), dim=axis)


def slice_values(
    node: Node,
    values: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """A part along each stated axis, with steps of either sign, bounds clamped to the axis."""
    first = starts.tolist() if starts is not None else list(node.integers("starts", ()))
    last = ends.tolist() if ends is not None else list(node.integers("ends", ()))
    chosen = axes_of(node, axes) or tuple(range(len(first)))
    strides = steps.tolist() if steps is not None else [1] * len(first)
    for axis, start, end, stride in zip(chosen, first, last, strides, strict=True):
        start, end, stride = slice(start, end, stride).indices(values.shape[axis])  # noqa: PLW2901
        if stride > 0:
            index = [slice(None)] * (axis % values.ndim) + [slice(start, max(end, start), stride)]
            values = values[tuple(index)]
        else:
            places = torch.arange(start, min(end, start), stride, device=values.device)
            values = values.index_select(axis, places)
    return values


def pad(node: Node, values: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    """More values at both ends of axes: a constant, a reflection, the edge, or the other end; negative pads cut."""
    chosen = [axis % values.ndim for axis in (axes.tolist() if axes is not None else range(values.ndim))]
    amounts = pads.tolist()
    before = dict(zip(chosen, amounts[: len(chosen)], strict=True))
    after = dict(zip(chosen, amounts[len(chosen) :], strict=True))
    mode = node.text("mode", "constant")
    if mode == "constant":
        flat = [n for axis in reversed(range(values.ndim)) for n in (before.get(axis, 0), after.get(axis, 0))]
        return functional.pad(values, flat, value=0 if value is None else value.item())
    for axis in chosen:
        places = torch.arange(-before[axis], values.shape[axis] + after[axis], device=values.device)
        values = values.index_select(axis, _folded(places, values.shape[axis], mode))
    return values


def tile(_node: Node, values: Tensor, repeats: Tensor) -> Tensor:
    """The tensor again and again along its axes."""
    return values.repeat(repeats.tolist())


def depth_to_space(node: Node, values: Tensor) -> Tensor:
    """Channels moved into blocks of pixels."""
    block = node.integer("blocksize", 1)
    samples, channels, height, width = values.shape
    rest = channels // block**2
    if node.text("mode", "DCR") == "DCR":
        blocks = values.reshape(samples, block, block, rest, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = values.reshape(samples, rest, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(samples, rest, height * block, width * block)


def space_to_depth(node: Node, values: Tensor) -> Tensor:
    """Blocks of pixels moved into channels."""
    block = node.integer("blocksize", 1)
    samples, channels, height, width = values.shape
    blocks = values.reshape(samples, channels, height // block, block, width // block, block)
    blocks = blocks.permute((0, 3, 5, 1, 2, 4) if node.text("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4))
    return blocks.reshape(samples, channels * block**2, height // block, width // block)


def _folded(places: Tensor, length: int, mode: str) -> Tensor:
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places % length
    period = max(2 * (length - 1), 1)
    return (length - 1) - ((length - 1) - places % period).abs()


OPERATORS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "Concat": concatenate,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Pad": pad,
    "Reshape": reshape,
    "Shape": shape,
    "Size": size,
    "Slice": slice_values,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
"""By operator type, in the domain of ONNX itself."""
