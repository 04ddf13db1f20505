"""What other tools want of a file to find its weights: initializers for Constant nodes, a newer operator set."""

from __future__ import annotations

import onnx
import onnx.version_converter
from onnx import ModelProto

SCALES_BY_CHANNEL = 13
"""The first operator set with an axis in DequantizeLinear."""


def prepared(model: ModelProto, opset: int = SCALES_BY_CHANNEL) -> ModelProto:
    """The model with float constants as initializers, in this operator set at least if it can be converted to that."""
    found = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if found < opset:
        try:
            model = onnx.version_converter.convert_version(model, opset)
        except RuntimeError as error:  # a graph with functions or of contrib operators stays as it is
            print(f"stays in operator set {found}: {error}")
    kept: list[onnx.NodeProto] = []
    for node in model.graph.node:
        value = node.attribute[0].t if node.op_type == "Constant" and node.attribute[0].name == "value" else None
        if value is not None and value.data_type == onnx.TensorProto.FLOAT and value.dims:
            model.graph.initializer.append(value)
            model.graph.initializer[-1].name = node.output[0]
        else:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model
