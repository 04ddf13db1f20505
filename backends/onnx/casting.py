"""Storing in 16 bits what is no site: norms, biases, tables. Cast nodes restore float32 while the model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import count
from typing import Literal

import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

Cast = Literal["none", "fp16", "bf16"]
"""How tensors that are not quantized are stored; `none` as they came."""
CAST_ELEMENTS = 32
"""From this size on two bytes saved an element pay for a Cast node and its names, some forty bytes."""
KEPT_EXACT = ("QuantizeLinear", "DequantizeLinear", "Resize", "Upsample", "Range")
"""Their float inputs are scales and sizes, not weights: they stay as they are."""
TYPES: Mapping[str, tuple[torch.dtype, int]] = {
    "fp16": (torch.float16, TensorProto.FLOAT16),
    "bf16": (torch.bfloat16, TensorProto.BFLOAT16),
}


def cast_tensors(proto: ModelProto, weights: Collection[str], cast: Cast, called: Mapping[str, str]) -> tuple[str, ...]:
    """Store the float32 tensors of a model's graph in 16 bits, each followed by a Cast; the graph is changed.

    A tensor stays in float32 if its greatest value overflows (65504 in fp16), or is so small that fp16 holds it with
    fewer bits than others (below 6.1e-5).

    Args:
        proto: The model.
        weights: Names of tensors that are left alone, because they are sites.
        cast: The type.
        called: What the user calls tensors that have another name here.

    Returns:
        A notice if some tensors had to stay.
    """
    if cast == "none":
        return ()
    graph, fresh = proto.graph, _fresh_names(proto.graph)
    exact = {name for node in graph.node if node.op_type in KEPT_EXACT for name in node.input}
    exact |= {entry.name for entry in (*graph.input, *graph.output)}
    out_of_range: list[str] = []
    casts: list[NodeProto] = []
    nodes: list[NodeProto] = []

    def stored(tensor: TensorProto, name: str) -> NodeProto | None:
        """Store a tensor under a new name; gives the node that restores it under its own."""
        if tensor.data_type != TensorProto.FLOAT or name in exact or name in weights:
            return None
        values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        if values.numel() < CAST_ELEMENTS:
            return None
        if not fits(values, TYPES[cast][0]):
            out_of_range.append(called.get(name, name))
            return None
        tensor.CopyFrom(half_tensor(values, next(fresh), cast))
        return helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT)

    for tensor in graph.initializer:
        if (node := stored(tensor, tensor.name)) is not None:
            casts.append(node)
    for node in graph.node:
        value = next((item.t for item in node.attribute if item.name == "value" and item.HasField("t")), None)
        nodes.append(node)
        if node.op_type == "Constant" and value is not None and (made := stored(value, node.output[0])) is not None:
            node.output[0] = value.name
            nodes.append(made)
    kept = [NodeProto.FromString(node.SerializeToString()) for node in (*casts, *nodes)]
    del graph.node[:]
    graph.node.extend(kept)
    if not out_of_range:
        return ()
    listed = ", ".join(out_of_range[:3]) + (", ..." if len(out_of_range) > 3 else "")
    return (f"{len(out_of_range)} tensors stay in float32, for their values are out of {cast}'s range: {listed}.",)


def fits(values: Tensor, half: torch.dtype) -> bool:
    """Whether a type of 16 bits holds the values with its full precision, as far as the greatest of them goes."""
    greatest = float(values.abs().max())
    limits = torch.finfo(half)
    return greatest == 0 or limits.tiny <= greatest <= limits.max


def half_tensor(values: Tensor, name: str, kind: str) -> TensorProto:
    """The values as a tensor of fp16 or bf16."""
    dtype, data_type = TYPES[kind]
    content = values.to(dtype).contiguous().view(torch.int16).numpy().tobytes()
    return helper.make_tensor(name, data_type, list(values.shape), content, raw=True)


def _fresh_names(graph: GraphProto) -> Iterator[str]:
    """Names that nothing in the graph has, nor in the graphs inside."""
    text = Counter(name for node in graph.node for name in (*node.input, *node.output))
    taken = {*text, *(entry.name for entry in (*graph.initializer, *graph.input))}
    return (name for name in (f"h{number}" for number in count()) if name not in taken)
