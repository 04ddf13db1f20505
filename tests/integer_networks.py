"""Small ONNX networks with what ONNX Runtime computes in integers, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from guidedq.frontend.onnx import load_onnx


def convolutions(folder: Path, opset: int = 20):
    """Two convolutions with a sum around them, a slice that passes by, an average, and a Gemm with a bias."""
    generator = np.random.default_rng(0)

    def drawn(name, *shape):
        return from_array(generator.normal(0, 0.3, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Slice", ["r1", "zero", "eight", "one"], ["cut"]),
        helper.make_node("Add", ["c2", "cut"], ["s"]),
        helper.make_node("Relu", ["s"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="head", transB=1),
    ]
    stored = [
        *(drawn("w1", 8, 3, 3, 3), drawn("b1", 8), drawn("w2", 8, 8, 3, 3), drawn("w3", 5, 8), drawn("b3", 5)),
        *(from_array(np.array([n]), name) for name, n in (("zero", 0), ("eight", 8), ("one", 1))),
    ]
    return loaded(folder, nodes, stored, ["n", 3, 6, 6], ["n", 5], opset)


def products(folder: Path, opset: int = 20):
    """Two products that read one tensor, and a Gemm after them."""
    generator = np.random.default_rng(1)

    def drawn(name, *shape):
        return from_array(generator.normal(0, 0.3, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="left"),
        helper.make_node("MatMul", ["x", "w2"], ["b"], name="right"),
        helper.make_node("Add", ["a", "b1"], ["c"]),
        helper.make_node("Tanh", ["c"], ["d"]),
        helper.make_node("Mul", ["b", "d"], ["e"]),
        helper.make_node("Reshape", ["e", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="head", transB=1),
    ]
    stored = [
        *(drawn("w1", 16, 12), drawn("w2", 16, 12), drawn("b1", 12), drawn("w3", 6, 60), drawn("b3", 6)),
        from_array(np.array([-1, 60]), "flat"),
    ]
    return loaded(folder, nodes, stored, ["n", 5, 16], ["n", 6], opset)


def loaded(folder, nodes, stored, given, made, opset):
    """Write the file, and load it as a model."""
    graph = helper.make_graph(
        nodes,
        "tested",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, made)],
        stored,
    )
    path = folder / "source.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return load_onnx(path)
