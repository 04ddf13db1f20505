"""Operators on sequences of tensors, which some exporters leave in place of a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from guidedq.ir.onnx_interpreter.node import Node


def split_to_sequence(node: Node, values: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
    """Parts along an axis: of one length, of given lengths, or single slices (without the axis unless `keepdims`)."""
    axis = node.integer("axis", 0)
    if lengths is None:
        parts = torch.split(values, 1, dim=axis)
        return [part if node.integer("keepdims", 1) else part.squeeze(axis) for part in parts]
    return list(torch.split(values, lengths.tolist(), dim=axis))


def concatenate_sequence(node: Node, sequence: list[Tensor]) -> Tensor:
    """One tensor of all, along an axis that is there or along a new one."""
    axis = node.integer("axis", 0)
    return torch.stack(sequence, dim=axis) if node.integer("new_axis", 0) else torch.cat(sequence, dim=axis)


def sequence_insert(_node: Node, sequence: list[Tensor], values: Tensor, place: Tensor | None = None) -> list[Tensor]:
    """The sequence with one more tensor, at the end or before a place."""
    index = len(sequence) if place is None else int(place)
    index = index + len(sequence) if index < 0 else index
    return [*sequence[:index], values, *sequence[index:]]


def sequence_erase(_node: Node, sequence: list[Tensor], place: Tensor | None = None) -> list[Tensor]:
    """The sequence without one tensor, the last or the one at a place."""
    index = (-1 if place is None else int(place)) % len(sequence)
    return [*sequence[:index], *sequence[index + 1 :]]


OPERATORS: Mapping[str, Callable[..., Tensor | list[Tensor]]] = {
    "ConcatFromSequence": concatenate_sequence,
    "SequenceAt": lambda _node, sequence, place: sequence[int(place)],
    "SequenceConstruct": lambda _node, *values: list(values),
    "SequenceEmpty": lambda _node: [],
    "SequenceErase": sequence_erase,
    "SequenceInsert": sequence_insert,
    "SequenceLength": lambda _node, sequence: torch.tensor(len(sequence)),
    "SplitToSequence": split_to_sequence,
}
"""By operator type, in the domain of ONNX itself."""
