"""Rewrites of an ONNX graph that change no output, so that more of its weights are found, and each is stored once.

Each takes a graph whose tensors are loaded and changes it in place. Constant nodes become initializers, weights in the
branches of control flow become weights of the whole graph, those that a recurrent layer reads through operators that
only move values are moved once, a BatchNormalization after a convolution becomes part of it,
so does the bias that is added to a product of matrices, and equal tensors become one: a transposed copy, which
exporters make of tied weights, a Transpose of the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from guidedq.frontend.onnx_computed import compute_weights
from guidedq.frontend.onnx_editing import (
    all_names,
    fresh_name,
    inner_graphs,
    is_a,
    keep,
    read_counts,
    rename,
    replace_all,
    stored_value,
)

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
        keep(model.graph.input, lambda entry: entry.name not in stored)
        model.ir_version = FREE_INITIALIZERS_FROM_VERSION
    store_constants(model.graph)
    lift_weights(model.graph)
    compute_weights(model)
    fold_batch_norms(model.graph)
    join_biases(model.graph)
    merge_equal(model.graph)


def store_constants(graph: GraphProto) -> None:
    """Make initializers of Constant nodes."""
    outputs = {entry.name for entry in graph.output}
    kept: list[NodeProto] = []
    for node in graph.node:
        tensor = stored_value(node) if is_a(node, "Constant") and node.output[0] not in outputs else None
        if tensor is None:
            kept.append(node)
        else:
            graph.initializer.append(tensor)
            graph.initializer[-1].name = node.output[0]
    replace_all(graph.node, kept)


def lift_weights(graph: GraphProto) -> None:
    """Move the weights of inner graphs, float tensors of two axes or more, out into this one."""
    taken = set(all_names(graph))
    for inner in [inner for node in graph.node for inner in inner_graphs(node)]:
        store_constants(inner)
        lift_weights(inner)
        outputs = {entry.name for entry in inner.output}
        weights = {
            tensor.name: tensor
            for tensor in inner.initializer
            if tensor.data_type in FLOATS and len(tensor.dims) > 1 and tensor.name not in outputs
        }
        renamed = {name: fresh_name(name, taken) for name in weights}
        for name, tensor in weights.items():
            graph.initializer.append(tensor)
            graph.initializer[-1].name = renamed[name]
        keep(inner.initializer, lambda tensor, weights=weights: tensor.name not in weights)
        rename(inner, renamed)


def fold_batch_norms(graph: GraphProto) -> None:
    """Make BatchNormalization a part of the convolution before it, if nothing else reads what it is made of."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    fixed = {entry.name for entry in (*graph.input, *graph.output)}
    reads = read_counts(graph)
    makers = {node.output[0]: node for node in graph.node if is_a(node, "Conv")}
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
        keep(graph.node, lambda node: not (_is_plain_norm(node) and node.input[0] in through))
        still = read_counts(graph)
        keep(graph.initializer, lambda tensor: tensor.name not in gone or still[tensor.name] > 0)
        keep(graph.value_info, lambda entry: entry.name not in gone)


def join_biases(graph: GraphProto) -> None:
    """Make one Gemm of a product of matrices with a weight and the Add of a bias after it, where nothing else reads it.

    ONNX Runtime does so too, but when values are rounded to integers its Gemm is then left in float.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    fixed = {entry.name for entry in (*graph.input, *graph.output)}
    reads, ranks = read_counts(graph), _ranks(graph)
    products = {
        node.output[0]: node
        for node in graph.node
        if is_a(node, "MatMul") and ranks.get(node.input[0]) == 2 and len(_dims(stored, node.input[1], fixed)) == 2
    }
    joined: dict[str, NodeProto] = {}
    for node in [node for node in graph.node if is_a(node, "Add")]:
        for value, bias in (node.input, reversed(node.input)):
            product = products.get(value)
            if product is None or value in fixed or reads[value] > 1 or value in joined:
                continue
            rows = stored[product.input[1]].dims[1]
            if _dims(stored, bias, fixed) in ([rows], [1, rows]):
                joined[value] = product
                replace_all(product.input, [*product.input, bias])
                product.op_type, product.output[0] = "Gemm", node.output[0]
    keep(graph.node, lambda node: not (is_a(node, "Add") and any(name in joined for name in node.input)))
    keep(graph.value_info, lambda entry: entry.name not in joined)


def merge_equal(graph: GraphProto) -> None:
    """Let the readers of equal initializers read the first of them, and those of a transposed copy its Transpose."""
    fixed = {entry.name for entry in (*graph.input, *graph.output)}
    looked_up = {node.input[0] for node in graph.node if is_a(node, "Gather")}
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
    keep(graph.initializer, lambda tensor: tensor.name not in gone)
    keep(graph.value_info, lambda entry: entry.name not in gone)
    rename(graph, renamed)
    replace_all(graph.node, [*turned, *graph.node])


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
    replace_all(convolution.input, [*convolution.input[:2], norm.input[2]])
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
        if is_a(node, "Gemm") or is_a(node, "Flatten") or (is_a(node, "MatMul") and read == [2, 2]):
            ranks[node.output[0]] = 2
        elif any(is_a(node, operator) for operator in ELEMENTWISE) and UNKNOWN not in read:
            ranks.setdefault(node.output[0], max(read))
    return ranks


def _is_plain_norm(node: NodeProto) -> bool:
    """Whether it is a BatchNormalization outside training that gives one output."""
    training = any(item.name == "training_mode" and item.i for item in node.attribute)
    return is_a(node, "BatchNormalization") and not training and not any(node.output[1:])


def _is_matrix(tensor: TensorProto) -> bool:
    return tensor.data_type in FLOATS and len(tensor.dims) == 2 and tensor.dims[0] * tensor.dims[1] >= SMALLEST_COPY


def _content(tensor: TensorProto, values: Any) -> bytes:
    """What tells equal tensors: a digest of type, shape and values."""
    state = hashlib.blake2b(f"{tensor.data_type} {values.shape} ".encode())
    state.update(np.ascontiguousarray(values).view(np.uint8).data if values.size else b"")
    return state.digest()
