"""Rewrites of an ONNX graph that change no output, so that more of its weights are found, and each is stored once.

Each takes a graph whose tensors are loaded and changes it in place. Constant nodes become initializers, weights in the
branches of control flow become weights of the whole graph, a BatchNormalization after a convolution becomes part of it,
so does the bias that is added to a product of matrices, and equal tensors become one: a transposed copy, which
exporters make of tied weights, a Transpose of the other.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
"""Element types of weights."""
SMALLEST_COPY = 1 << 10
"""Values from which a transposed copy gives way to a Transpose node of some 50 bytes."""
UNKNOWN = -1
"""For the number of axes, where it is not known."""
ELEMENTWISE = ("Add", "Clip", "Div", "Elu", "Gelu", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Softplus", "Sub", "Tanh")
"""Operators that write as many axes as the input that has most of them."""
USUAL_EPSILON = 1e-5
"""Of BatchNormalization, by the standard."""
FREE_INITIALIZERS_FROM_VERSION = 4
"""The version of the file format from which an initializer need not be listed among the inputs."""


def rewrite(model: ModelProto) -> None:
    """All of them, in an order in which they help one another."""
    if model.ir_version < FREE_INITIALIZERS_FROM_VERSION:
        stored = {tensor.name for tensor in model.graph.initializer}
        _keep(model.graph.input, lambda entry: entry.name not in stored)
        model.ir_version = FREE_INITIALIZERS_FROM_VERSION
    store_constants(model.graph)
    lift_weights(model.graph)
    fold_batch_norms(model.graph)
    join_biases(model.graph)
    merge_equal(model.graph)


def store_constants(graph: GraphProto) -> None:
    """Make initializers of Constant nodes."""
    outputs = {entry.name for entry in graph.output}
    kept: list[NodeProto] = []
    for node in graph.node:
        tensor = _constant(node) if _is(node, "Constant") and node.output[0] not in outputs else None
        if tensor is None:
            kept.append(node)
        else:
            graph.initializer.append(tensor)
            graph.initializer[-1].name = node.output[0]
    _replace(graph.node, kept)


def lift_weights(graph: GraphProto) -> None:
    """Move the weights of inner graphs, float tensors of two axes or more, out into this one."""
    taken = set(_names(graph))
    for inner in [inner for node in graph.node for inner in _inner_graphs(node)]:
        store_constants(inner)
        lift_weights(inner)
        outputs = {entry.name for entry in inner.output}
        weights = {
            tensor.name: tensor
            for tensor in inner.initializer
            if tensor.data_type in FLOATS and len(tensor.dims) > 1 and tensor.name not in outputs
        }
        renamed = {name: _fresh(name, taken) for name in weights}
        for name, tensor in weights.items():
            graph.initializer.append(tensor)
            graph.initializer[-1].name = renamed[name]
        _keep(inner.initializer, lambda tensor, weights=weights: tensor.name not in weights)
        _rename(inner, renamed)


def fold_batch_norms(graph: GraphProto) -> None:
    """Make BatchNormalization a part of the convolution before it, if nothing else reads what it is made of."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    fixed = {entry.name for entry in (*graph.input, *graph.output)}
    reads = _reads(graph)
    makers = {node.output[0]: node for node in graph.node if _is(node, "Conv")}
    folded: list[NodeProto] = []
    gone: set[str] = set()
    for norm in graph.node:
        convolution = makers.get(norm.input[0]) if _is_plain_norm(norm) else None
        if convolution is None or norm.input[0] in fixed or reads[norm.input[0]] > 1:
            continue
        weight, *sides = (*convolution.input[1:2], *norm.input[1:5], *convolution.input[2:3])
        values = [_values(stored, name, fixed) for name in (weight, *sides)]
        if any(value is None for value in values) or reads[weight] > 1 or reads[norm.input[2]] > 1:
            continue
        gone.update((norm.input[0], *norm.input[1:5], *convolution.input[2:3]))
        _fold(convolution, norm, stored, values)
        folded.append(norm)
    if folded:
        through = {norm.input[0] for norm in folded}
        _keep(graph.node, lambda node: not (_is_plain_norm(node) and node.input[0] in through))
        still = _reads(graph)
        _keep(graph.initializer, lambda tensor: tensor.name not in gone or still[tensor.name] > 0)
        _keep(graph.value_info, lambda entry: entry.name not in gone)


def join_biases(graph: GraphProto) -> None:
    """Make one Gemm of a product of matrices with a weight and the Add of a bias after it, where nothing else reads it.

    ONNX Runtime does so too, but when values are rounded to integers its Gemm is then left in float.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    fixed = {entry.name for entry in (*graph.input, *graph.output)}
    reads, ranks = _reads(graph), _ranks(graph)
    products = {
        node.output[0]: node
        for node in graph.node
        if _is(node, "MatMul") and ranks.get(node.input[0]) == 2 and len(_dims(stored, node.input[1], fixed)) == 2
    }
    joined: dict[str, NodeProto] = {}
    for node in [node for node in graph.node if _is(node, "Add")]:
        for value, bias in (node.input, reversed(node.input)):
            product = products.get(value)
            if product is None or value in fixed or reads[value] > 1 or value in joined:
                continue
            rows = stored[product.input[1]].dims[1]
            if _dims(stored, bias, fixed) in ([rows], [1, rows]):
                joined[value] = product
                _replace(product.input, [*product.input, bias])
                product.op_type, product.output[0] = "Gemm", node.output[0]
    _keep(graph.node, lambda node: not (_is(node, "Add") and any(name in joined for name in node.input)))
    _keep(graph.value_info, lambda entry: entry.name not in joined)


def merge_equal(graph: GraphProto) -> None:
    """Let the readers of equal initializers read the first of them, and those of a transposed copy its Transpose."""
    fixed = {entry.name for entry in (*graph.input, *graph.output)}
    looked_up = {node.input[0] for node in graph.node if _is(node, "Gather")}
    found: dict[bytes, str] = {}
    shapes: set[tuple[int, ...]] = set()
    renamed: dict[str, str] = {}
    turned: list[NodeProto] = []
    for tensor in sorted(graph.initializer, key=lambda tensor: tensor.name not in looked_up):
        if tensor.name in fixed or tensor.data_type == TensorProto.STRING:
            continue
        values = numpy_helper.to_array(tensor)
        if (other := found.get(_content(tensor, values))) is not None:
            renamed[tensor.name] = other
        elif _is_matrix(tensor) and values.shape[::-1] in shapes and (other := found.get(_content(tensor, values.T))):
            turned.append(helper.make_node("Transpose", [other], [tensor.name], perm=[1, 0]))
        else:
            found[_content(tensor, values)] = tensor.name
            shapes.add(values.shape)
    gone = {*renamed, *(node.output[0] for node in turned)}
    _keep(graph.initializer, lambda tensor: tensor.name not in gone)
    _keep(graph.value_info, lambda entry: entry.name not in gone)
    _rename(graph, renamed)
    _replace(graph.node, [*turned, *graph.node])


def _fold(convolution: NodeProto, norm: NodeProto, stored: Mapping[str, TensorProto], values: list[Any]) -> None:
    """`scale (W x + b - mean) / sqrt(variance + epsilon) + offset`, in float64; the offset's tensor holds the bias."""
    weight, scale, offset, mean, variance, *bias = values
    epsilon = next((item.f for item in norm.attribute if item.name == "epsilon"), USUAL_EPSILON)
    factor = scale / np.sqrt(variance + epsilon)
    shift = offset + ((bias[0] if bias else 0.0) - mean) * factor
    for name, made in (
        (convolution.input[1], weight * factor.reshape(-1, *[1] * (weight.ndim - 1))),
        (norm.input[2], shift),
    ):
        stored[name].CopyFrom(numpy_helper.from_array(made.astype(np.float32), name))
    _replace(convolution.input, [*convolution.input[:2], norm.input[2]])
    convolution.output[0] = norm.output[0]


def _values(stored: Mapping[str, TensorProto], name: str, fixed: set[str]) -> Any:
    tensor = stored.get(name)
    if tensor is None or name in fixed or tensor.data_type != TensorProto.FLOAT:
        return None
    return numpy_helper.to_array(tensor).astype(np.float64)


def _dims(stored: Mapping[str, TensorProto], name: str, fixed: set[str]) -> list[int]:
    """The shape of a stored float32 tensor; empty if it is none."""
    tensor = stored.get(name)
    return [] if tensor is None or name in fixed or tensor.data_type != TensorProto.FLOAT else list(tensor.dims)


def _ranks(graph: GraphProto) -> dict[str, int]:
    """The axes of values, where the file states them, and as far as they follow from those."""
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    for entry in (*graph.input, *graph.value_info, *graph.output):
        if entry.type.tensor_type.HasField("shape"):
            ranks[entry.name] = len(entry.type.tensor_type.shape.dim)
    for node in graph.node:
        read = [ranks.get(name, UNKNOWN) for name in node.input]
        if _is(node, "Gemm") or _is(node, "Flatten") or (_is(node, "MatMul") and read == [2, 2]):
            ranks[node.output[0]] = 2
        elif any(_is(node, operator) for operator in ELEMENTWISE) and UNKNOWN not in read:
            ranks.setdefault(node.output[0], max(read))
    return ranks


def _is_plain_norm(node: NodeProto) -> bool:
    """Whether it is a BatchNormalization outside training that gives one output."""
    training = any(item.name == "training_mode" and item.i for item in node.attribute)
    return _is(node, "BatchNormalization") and not training and not any(node.output[1:])


def _is_matrix(tensor: TensorProto) -> bool:
    return tensor.data_type in FLOATS and len(tensor.dims) == 2 and tensor.dims[0] * tensor.dims[1] >= SMALLEST_COPY


def _content(tensor: TensorProto, values: Any) -> bytes:
    """What tells equal tensors: a digest of type, shape and values."""
    state = hashlib.blake2b(f"{tensor.data_type} {values.shape} ".encode())
    state.update(np.ascontiguousarray(values).view(np.uint8).data if values.size else b"")
    return state.digest()


def _constant(node: NodeProto) -> TensorProto | None:
    """The value of a Constant node as a tensor, `None` if it is sparse or text."""
    for item in node.attribute:
        if item.name == "value":
            return item.t
        if item.name in ("value_int", "value_ints", "value_float", "value_floats"):
            dtype = np.int64 if "int" in item.name else np.float32
            return numpy_helper.from_array(np.array(helper.get_attribute_value(item), dtype=dtype))
    return None


def _is(node: NodeProto, operator: str) -> bool:
    return node.op_type == operator and node.domain in ("", "ai.onnx")


def _reads(graph: GraphProto) -> Counter[str]:
    """How often each name is read, in inner graphs too."""
    counts = Counter(name for node in graph.node for name in node.input)
    counts.update(entry.name for entry in graph.output)
    for node in graph.node:
        for inner in _inner_graphs(node):
            counts += _reads(inner)
    return counts


def _rename(graph: GraphProto, renamed: Mapping[str, str]) -> None:
    """Let everything that reads these values read others."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        for inner in _inner_graphs(node):
            own = {name for part in inner.node for name in part.output} | {entry.name for entry in inner.input}
            _rename(inner, {old: new for old, new in renamed.items() if old not in own})


def _names(graph: GraphProto) -> Iterator[str]:
    for entry in (*graph.input, *graph.output, *graph.initializer):
        yield entry.name
    for node in graph.node:
        yield from (*node.input, *node.output)
        for inner in _inner_graphs(node):
            yield from _names(inner)


def _fresh(name: str, taken: set[str]) -> str:
    """A name like this that nothing has; taken from now on."""
    candidate = next(name for name in (f"{name}_{count}" for count in itertools.count(1)) if name not in taken)
    taken.add(candidate)
    return candidate


def _inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    for item in node.attribute:
        if item.HasField("g"):
            yield item.g
        yield from item.graphs


def _keep(entries: Any, wanted: Any) -> None:
    for index in reversed(range(len(entries))):
        if not wanted(entries[index]):
            del entries[index]


def _replace(entries: Any, others: list[Any]) -> None:
    copies = [
        other if isinstance(other, str) else type(other).FromString(other.SerializeToString()) for other in others
    ]
    del entries[:]
    entries.extend(copies)
