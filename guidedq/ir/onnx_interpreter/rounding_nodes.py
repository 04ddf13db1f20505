"""The rounding of activations to int8 per block, written in plain ONNX operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

REDUCTIONS_TAKE_AXES_FROM_OPSET = 18
"""From this operator set on, ReduceMax reads its axes as an input."""


def rounding_nodes(
    source: str, prefix: str, columns: int, block_size: int, opset: int
) -> tuple[str, list[NodeProto], list[TensorProto]]:
    """Nodes that do to the value `source`, `[..., columns]`, what `round_activations` does, in float32.

    Args:
        source: Name of the value.
        prefix: Begins every name that is made.
        columns: Length of its last axis.
        block_size: Values that share a scale.
        opset: The operator set that the nodes are for.

    Returns:
        Name of the rounded value, the nodes in order, and the constants that they read.
    """
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []
    wide = -(-columns // block_size) * block_size

    def constant(name: str, values: Any, dtype: type) -> str:
        constants.append(numpy_helper.from_array(np.array(values, dtype=dtype), f"{prefix}/{name}"))
        return f"{prefix}/{name}"

    def call(operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        result = f"{prefix}/{len(nodes)}"
        nodes.append(helper.make_node(operator, list(inputs), [result], name=result, **attributes))
        return result

    shape = call("Shape", [source])
    rows = call("Reshape", [source, constant("rows", [-1, columns], np.int64)])
    padded = call("Pad", [rows, constant("pads", [0, 0, 0, wide - columns], np.int64)])
    blocks = call("Reshape", [padded, constant("blocks", [-1, wide // block_size, block_size], np.int64)])
    largest = _largest(call, call("Abs", [blocks]), constant, opset)
    bound = constant("bound", 127.0, np.float32)
    scale = call("Div", [largest, bound])
    positive = call("Greater", [scale, constant("zero", 0.0, np.float32)])
    divisor = call("Where", [positive, scale, constant("one", 1.0, np.float32)])
    codes = call("Round", [call("Div", [blocks, divisor])])
    clipped = call("Clip", [codes, constant("least", -127.0, np.float32), bound])
    flat = call("Reshape", [call("Mul", [clipped, scale]), constant("wide", [-1, wide], np.int64)])
    bounds = [constant("start", [0], np.int64), constant("end", [columns], np.int64), constant("axis", [1], np.int64)]
    return call("Reshape", [call("Slice", [flat, *bounds]), shape]), nodes, constants


def _largest(call: Callable[..., str], values: str, constant: Callable[..., str], opset: int) -> str:
    if opset < REDUCTIONS_TAKE_AXES_FROM_OPSET:
        return call("ReduceMax", [values], axes=[-1], keepdims=1)
    return call("ReduceMax", [values, constant("axes", [-1], np.int64)], keepdims=1)
