"""Element types and shapes of the values of an ONNX graph, as far as they are declared or can be inferred."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import final

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

FLOATING = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})
"""Element types that a gradient can flow through."""
LARGEST_INFERRED = 1024
"""Values that a constant may have for inference to be told them: shapes are short, weights are not."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ValueType:
    """Element type (ONNX's number, 0 if unknown) and shape (`None` for a free size; all `None` if unknown)."""

    element: int
    shape: tuple[int | None, ...] | None

    @property
    def may_float(self) -> bool:
        """Whether it is a floating point tensor, or may be one for all that is known."""
        return self.element == 0 or self.element in FLOATING


UNKNOWN = ValueType(element=0, shape=None)


def infer_types(model: ModelProto) -> Mapping[str, ValueType]:
    """The types of all values that ONNX's own inference finds, without reading any weight."""
    light = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=_light(model.graph))
    try:
        graph = onnx.shape_inference.infer_shapes(light).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        graph = light.graph  # what is declared is still known
    types = {info.name: declared_type(info) for info in (*graph.input, *graph.value_info, *graph.output)}
    for tensor in model.graph.initializer:
        types[tensor.name] = ValueType(element=tensor.data_type, shape=tuple(tensor.dims))
    return types


def declared_type(info: ValueInfoProto) -> ValueType:
    """What a graph declares of a value."""
    if not info.type.HasField("tensor_type"):
        return UNKNOWN
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return ValueType(element=tensor.elem_type, shape=None)
    sizes = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
    return ValueType(element=tensor.elem_type, shape=sizes)


def _light(graph: GraphProto) -> GraphProto:
    """The graph with the values of large constants left out."""
    return GraphProto(
        name=graph.name,
        node=[_light_node(node) for node in graph.node],
        input=graph.input,
        output=graph.output,
        value_info=graph.value_info,
        initializer=[_light_tensor(tensor) for tensor in graph.initializer],
    )


def _light_tensor(tensor: TensorProto) -> TensorProto:
    if prod(tensor.dims) <= LARGEST_INFERRED and tensor.data_location != TensorProto.EXTERNAL:
        return tensor
    return TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)


def _light_node(node: NodeProto) -> NodeProto:
    if node.op_type != "Constant" or not any(prod(entry.t.dims) > LARGEST_INFERRED for entry in node.attribute):
        return node
    light = NodeProto(op_type=node.op_type, domain=node.domain, name=node.name, output=node.output)
    for entry in node.attribute:
        light.attribute.append(onnx.AttributeProto(name=entry.name, type=entry.type, t=_light_tensor(entry.t)))
    return light
