"""A softmax that exporters of JAX and TensorFlow spell out, `exp(x) / sum(exp(x))`, becomes a Softmax node again.

Only so the output is known to hold probabilities, and the loss to be a divergence.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from guidedq.frontend.onnx_editing import is_a, keep, read_counts

SPREADING = ("Reshape", "Expand", "Unsqueeze", "Identity", "Cast")
"""Operators through which the sums go back to the shape of what they are of."""


def join_softmaxes(graph: GraphProto) -> None:
    """Where an output of the graph is such a quotient over its last axis."""
    makers = {name: node for node in graph.node for name in node.output if name}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for entry in graph.output:
        quotient, rank = makers.get(entry.name), len(entry.type.tensor_type.shape.dim)
        exponential = None if quotient is None else _exponential(quotient, rank, makers, stored)
        if quotient is None or exponential is None:
            continue
        joined = helper.make_node("Softmax", [exponential.input[0]], [entry.name], quotient.name, axis=rank - 1)
        quotient.CopyFrom(joined)
        _drop_unread(graph)


def _exponential(
    quotient: NodeProto, rank: int, makers: Mapping[str, NodeProto], stored: Mapping[str, TensorProto]
) -> NodeProto | None:
    """The Exp whose values are divided by their sums over the last of `rank` axes; `None` if that is not what it is."""
    if not is_a(quotient, "Div") or rank == 0:
        return None
    exponential, divisor = (makers.get(name) for name in quotient.input)
    while divisor is not None and any(is_a(divisor, operator) for operator in SPREADING):
        divisor = makers.get(divisor.input[0])
    if exponential is None or divisor is None or not is_a(exponential, "Exp") or not is_a(divisor, "ReduceSum"):
        return None
    same = divisor.input[0] == quotient.input[0]
    return exponential if same and _summed_axes(divisor, stored) in ([-1], [rank - 1]) else None


def _summed_axes(node: NodeProto, stored: Mapping[str, TensorProto]) -> list[int]:
    """Those of a ReduceSum: an input since opset 13, an attribute before; empty if they are not stored."""
    listed = [list(item.ints) for item in node.attribute if item.name == "axes"]
    if listed:
        return listed[0]
    tensor = stored.get(node.input[1]) if len(node.input) > 1 else None
    return [] if tensor is None else np.atleast_1d(numpy_helper.to_array(tensor)).tolist()


def _drop_unread(graph: GraphProto) -> None:
    """Leave out nodes that nothing reads, then those that only they read."""
    while True:
        read = read_counts(graph)
        count = len(graph.node)
        keep(graph.node, lambda node: any(read[name] for name in node.output))  # noqa: B023  (called at once)
        if len(graph.node) == count:
            return
