"""Making a graph small: constants folded, names short, traces of the exporting machine gone."""

from __future__ import annotations

import string
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from .casting import TYPES, half_tensor

HELD_ELEMENTS = 256
"""Tensors of this many elements, and all matrices, are kept out of constant folding, so that no weight is changed."""
FOLDING_ROUNDS = 2
"""Rounds of constant folding; each can uncover work for the next, and a third changes nothing on usual models."""
KEPT_APART = ("TransposeOptimizer", "MatMulAddFusion")
"""Rewrites that move the transposes of weights, or merge a product with what follows it."""
SPECIAL_OPERATORS = ("CastLike", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
"""Signs of graphs of several precisions: the runtime moves casts in these as it needs them itself."""
ONLY_ERRORS = 3
"""The runtime's least talkative level but one."""


def compacted(proto: ModelProto, weights: Sequence[str]) -> tuple[ModelProto, Mapping[str, str]]:
    """The user's own graph with constants folded and short names, and the new names by the old.

    Inputs, outputs, metadata and the stated shapes of what lies between are kept. A graph is left as it is where
    folding could change more than constants: control flow, functions, operators beyond the standard, quantized or half
    precision parts, initializers that a caller may override.
    """
    if not _is_plain(proto):
        return proto, {name: name for name in weights}
    metadata = [type(entry).FromString(entry.SerializeToString()) for entry in proto.metadata_props]
    shapes = [type(entry).FromString(entry.SerializeToString()) for entry in proto.graph.value_info]
    inputs, outputs = ([entry.name for entry in entries] for entries in (proto.graph.input, proto.graph.output))
    _store_constants(proto.graph, frozenset(weights))
    proto = fold_constants(proto, frozenset(weights))
    strip(proto)
    proto.metadata_props.extend(metadata)
    made = {name for node in proto.graph.node for name in node.output}
    proto.graph.value_info.extend(entry for entry in shapes if entry.name in made)
    renamed = shorten_names(proto, inputs, outputs)
    return proto, renamed


def _is_plain(proto: ModelProto) -> bool:
    graph = proto.graph
    stored = {tensor.name for tensor in graph.initializer}
    halves = any(tensor.data_type in HALF_TYPES for tensor in graph.initializer)
    special = halves or graph.sparse_initializer or any(entry.name in stored for entry in graph.input)
    return not (special or proto.functions or any(map(_is_special, graph.node)))


def _is_special(node: onnx.NodeProto) -> bool:
    inner = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
    halves = node.op_type == "Cast" and any(attribute.i in HALF_TYPES for attribute in node.attribute)
    return inner or halves or node.domain not in ("", "ai.onnx") or node.op_type in SPECIAL_OPERATORS


def _store_constants(graph: GraphProto, weights: frozenset[str]) -> None:
    """Weights that stand in Constant nodes become initializers."""
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type == "Constant" and node.output[0] in weights:
            values = next(item.t for item in node.attribute if item.name == "value")
            graph.initializer.add().CopyFrom(values)
            graph.initializer[-1].name = node.output[0]
            del graph.node[index]


def fold_constants(proto: ModelProto, weights: frozenset[str]) -> ModelProto:
    """Fold constants and merge equal nodes; weights take part as inputs, so that none is transposed or merged."""
    held: dict[str, TensorProto] = {}
    for index in reversed(range(len(proto.graph.initializer))):
        tensor = proto.graph.initializer[index]
        if tensor.name in weights or int(np.prod(tensor.dims)) >= HELD_ELEMENTS or len(tensor.dims) > 1:
            held[tensor.name] = TensorProto.FromString(tensor.SerializeToString())
            del proto.graph.initializer[index]
    given = {entry.name for entry in proto.graph.input}
    proto.graph.input.extend(
        helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)) for name, tensor in held.items()
    )
    for _ in range(FOLDING_ROUNDS):
        proto = _optimized(proto)
    read = {name for node in proto.graph.node for name in node.input}
    for index in reversed(range(len(proto.graph.input))):
        if proto.graph.input[index].name not in given:
            del proto.graph.input[index]
    proto.graph.initializer.extend(held[name] for name in sorted(held) if name in read or name in weights)
    return proto


def _optimized(proto: ModelProto) -> ModelProto:
    """The graph after ONNX Runtime's own basic rewrites, which need a hundredth of the time of those in Python."""
    import onnxruntime

    for node in proto.graph.node:
        del node.metadata_props[:]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = ONLY_ERRORS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(
            proto.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(KEPT_APART),
        )
        return onnx.load_model(str(path))


def strip(proto: ModelProto) -> None:
    """Leave out names of nodes, shapes in between, and what tells of the exporting machine: all count as bytes."""
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.graph.value_info[:]
    proto.ClearField("doc_string")
    proto.graph.ClearField("doc_string")
    proto.graph.name = "g"
    for entry in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        entry.ClearField("doc_string")
        del entry.metadata_props[:]
    for node in proto.graph.node:
        for field in ("name", "doc_string", "domain" if not node.domain else "name", "overload"):
            node.ClearField(field)
        del node.metadata_props[:]
        _drop_defaults(node, proto)
    for index in reversed(range(len(proto.opset_import))):
        domain = proto.opset_import[index].domain
        if domain and not any(node.domain == domain for node in proto.graph.node):
            del proto.opset_import[index]


def _drop_defaults(node: onnx.NodeProto, proto: ModelProto) -> None:
    """Leave out attributes that say what the operator does anyway."""
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    if node.domain or not onnx.defs.has(node.op_type):
        return
    known = onnx.defs.get_schema(node.op_type, versions[""]).attributes
    for index in reversed(range(len(node.attribute))):
        attribute = node.attribute[index]
        default = known[attribute.name].default_value if attribute.name in known else None
        if default is not None and default.type == attribute.type and _value(default) == _value(attribute):
            del node.attribute[index]


def _value(attribute: onnx.AttributeProto) -> Any:
    return helper.get_attribute_value(attribute) if attribute.type else None


def shorten_names(proto: ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> Mapping[str, str]:
    """Give the model's inputs and outputs these names and every other value a short one; the new names by the old."""
    graph = proto.graph
    renamed: dict[str, str] = {"": ""}
    renamed.update({entry.name: name for entry, name in zip(graph.input, inputs, strict=True)})
    renamed.update({entry.name: name for entry, name in zip(graph.output, outputs, strict=True)})
    fresh = _short_names({*inputs, *outputs})
    for name in _in_order(graph):
        if name not in renamed:
            renamed[name] = next(fresh)
    for entry in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        entry.name = renamed[entry.name]
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed[name] for name in names]
    return renamed


def _in_order(graph: GraphProto) -> Iterator[str]:
    """Names of values, those that are read most often first, so that they get the shortest names."""
    reads: dict[str, int] = {tensor.name: 0 for tensor in graph.initializer}
    for node in graph.node:
        for name in (*node.input, *node.output):
            reads[name] = reads.get(name, 0) + 1
    return iter(sorted(reads, key=lambda name: -reads[name]))


def _short_names(taken: set[str]) -> Iterator[str]:
    for length in count(1):
        for letters in product(string.ascii_letters, repeat=length):
            name = "".join(letters)
            if name not in taken:
                yield name


def store_small(graph: GraphProto, weights: frozenset[str]) -> None:
    """Store what fp16 (or bf16) holds exactly in that type, followed by a cast that the runtime folds."""
    casts: list[onnx.NodeProto] = []
    for tensor in graph.initializer:
        if tensor.name in weights or tensor.data_type != TensorProto.FLOAT:
            continue
        values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        half = next((kind for kind, (dtype, _) in TYPES.items() if torch.equal(values.to(dtype).float(), values)), None)
        if values.numel() < HELD_ELEMENTS or half is None:
            continue
        name = tensor.name
        stored = half_tensor(values, f"{name}_", half)
        tensor.CopyFrom(stored)
        casts.append(helper.make_node("Cast", [stored.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *(onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node)]
    del graph.node[:]
    graph.node.extend(nodes)
