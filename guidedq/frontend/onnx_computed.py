"""Weights that a graph computes from what it stores: gates in another order, directions and lengths of weight_norm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from guidedq.frontend.onnx_editing import all_names, fresh_name, inner_graphs, is_a, keep, read_counts

LAYERS = ("LSTM", "GRU", "RNN")
WEIGHTS = {**dict.fromkeys(LAYERS, (1, 2)), **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), (1,))}
"""The operators that read a weight, and which of their inputs are weights."""
MOVING = ("Concat", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Identity")
"""Operators that only move values."""
COMPUTING = (
    *("Abs", "Add", "Div", "Exp", "Expand", "MatMul", "Mul", "Neg", "Pow", "ReduceL2", "ReduceMean"),
    *("ReduceSum", "Sqrt", "Sub"),
)
"""Operators that norms of weights are made of."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
CODES = (TensorProto.INT8, TensorProto.UINT8)
"""What is made of these is larger than they are."""


def compute_weights(model: ModelProto) -> None:
    """Store what weights become on their way, in place of what they were, if it can be told.

    What is only moved is moved for recurrent layers alone; what is computed is stored if all that it is made of goes.
    """
    taken, given = set(all_names(model.graph)), {entry.name for entry in model.graph.input}
    reads, touched = read_counts(model.graph), set[str]()
    for node, makers, stored in [*_layers(model.graph, {}, {})]:
        for index in WEIGHTS[node.op_type]:
            name = node.input[index]
            chain = _chain(name, makers, stored.keys() - given) or []
            sources = [read for part in chain for read in part.input if read in stored]
            computes = any(part.op_type in COMPUTING for part in chain)
            if not (_replaces(name, chain, stored, reads) if computes else node.op_type in LAYERS):
                continue
            value = _value(model, name, chain, [stored[read] for read in dict.fromkeys(sources)]) if sources else None
            if value is not None:
                touched.update(sources, *(part.output for part in chain))
                node.input[index] = fresh_name(sources[0], taken)
                model.graph.initializer.append(numpy_helper.from_array(value, node.input[index]))
    _drop_unread(model.graph, touched)


def _layers(
    graph: GraphProto, makers: Mapping[str, NodeProto], stored: Mapping[str, TensorProto]
) -> Iterator[tuple[NodeProto, Mapping[str, NodeProto], Mapping[str, TensorProto]]]:
    """The nodes that read weights, in inner graphs too, with who makes and what holds the values that they may read."""
    makers = {**makers, **{name: node for node in graph.node for name in node.output}}
    stored = {**stored, **{tensor.name: tensor for tensor in graph.initializer}}
    for node in graph.node:
        if any(is_a(node, operator) for operator in WEIGHTS):
            yield node, makers, stored
        for inner in inner_graphs(node):
            yield from _layers(inner, makers, stored)


def _chain(name: str, makers: Mapping[str, NodeProto], stored: Any) -> list[NodeProto] | None:
    """The nodes that make a value out of stored ones, in order; `None` if it depends on anything else."""
    node = makers.get(name)
    if node is None or not any(is_a(node, operator) for operator in (*MOVING, *COMPUTING)):
        return None
    found: list[NodeProto] = []
    for read in node.input:
        if read and read not in stored:
            before = _chain(read, makers, stored)
            if before is None:
                return None
            found += [part for part in before if part not in found]
    return [*found, node]


def _replaces(name: str, chain: list[NodeProto], stored: Mapping[str, TensorProto], reads: Mapping[str, int]) -> bool:
    """Whether nothing else reads the matrices that the chain starts from, nor what it makes on its way."""
    own = Counter(read for node in chain for read in node.input)
    sources = [stored[read] for read in own if read in stored]
    large = {tensor.name for tensor in sources if tensor.data_type in FLOATS and len(tensor.dims) > 1}
    made = {output for node in chain for output in node.output} - {name}
    alone = all(reads[part] == own[part] for part in large | made)
    return alone and not any(tensor.data_type in CODES for tensor in sources)


def _value(model: ModelProto, name: str, chain: list[NodeProto], sources: list[TensorProto]) -> Any:
    """What these nodes make of these tensors, `None` if they cannot."""
    graph = helper.make_graph(chain, "chain", [], [helper.make_empty_tensor_value_info(name)], sources)
    whole = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        found: Any = ReferenceEvaluator(whole).run(None, {})
    except Exception:  # each operator fails in its own way; whoever runs the graph will tell where
        return None
    return found[0]


def _drop_unread(graph: GraphProto, names: Collection[str]) -> None:
    """Drop the nodes and tensors of these names that nothing reads any more, in inner graphs too."""
    while idle := {name for name, count in _counted(graph, names).items() if not count}:
        for part in _with_inner(graph):
            keep(part.node, lambda node, idle=idle: not idle.issuperset(node.output))
            keep(part.initializer, lambda tensor, idle=idle: tensor.name not in idle)


def _counted(graph: GraphProto, names: Collection[str]) -> Mapping[str, int]:
    """How often each of these names is read, as far as they are still there."""
    reads = read_counts(graph)
    made = {name for part in _with_inner(graph) for node in part.node for name in node.output}
    held = {tensor.name for part in _with_inner(graph) for tensor in part.initializer}
    return {name: reads[name] for name in names if name in made | held}


def _with_inner(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from _with_inner(inner)
