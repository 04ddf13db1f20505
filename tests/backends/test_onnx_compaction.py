"""An ONNX file's own graph is made small without changing what it computes, or left as it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from guidedq.backends.onnx.compaction import compacted

ROWS, COLUMNS = 6, 300


def graph(nodes: Sequence[NodeProto], *, stored: bool = True, opset: int = 17) -> ModelProto:
    """`input [N, 6]` to `output`, with a weight `w` that is an initializer or a Constant node."""
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype("float32"), "w")
    held = [] if stored else [helper.make_node("Constant", [], ["w"], value=weight)]
    given = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", ROWS])]
    made = [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)]
    bias = numpy_helper.from_array(np.ones(COLUMNS, dtype="float32"), "bias of a long name")
    inner = helper.make_graph([*held, *nodes], "long name", given, made, [bias, *([weight] if stored else [])])
    proto = helper.make_model(inner, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    proto.metadata_props.add(key="labels", value="cat,dog")
    return proto


def product() -> list[NodeProto]:
    """A linear layer and a reshape whose shape is put together from constants."""
    constants = [
        helper.make_node("Constant", [], [f"a very long name {number}"], value_ints=[number])
        for number in (-1, 2, COLUMNS // 2)
    ]
    return [
        helper.make_node("MatMul", ["input", "w"], ["/model/layer/MatMul_output_0"], name="/model/layer/MatMul"),
        helper.make_node("Add", ["/model/layer/MatMul_output_0", "bias of a long name"], ["/model/layer/Add_output_0"]),
        *constants,
        helper.make_node("Concat", [node.output[0] for node in constants], ["shape in the end"], axis=0),
        helper.make_node("Reshape", ["/model/layer/Add_output_0", "shape in the end"], ["output"]),
    ]


def answer(proto: ModelProto) -> np.ndarray:
    """What the runtime computes."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    values = np.random.default_rng(1).normal(size=(3, ROWS)).astype("float32")
    return np.asarray(session.run(["output"], {"input": values})[0])


@pytest.mark.parametrize("stored", [True, False])
def test_a_compacted_graph_computes_the_same_in_fewer_bytes(stored: bool) -> None:
    """Whether its weight is an initializer or a Constant node; no value of the weight changes."""
    before = graph(product(), stored=stored)
    expected, size = answer(before), before.ByteSize()
    weight = next(
        tensor for tensor in (*before.graph.initializer, *(a.t for n in before.graph.node for a in n.attribute))
        if list(tensor.dims) == [ROWS, COLUMNS]
    )  # fmt: skip
    values = numpy_helper.to_array(weight)
    after, names = compacted(before, ["w"])
    onnx.checker.check_model(after)
    np.testing.assert_array_equal(answer(after), expected)
    kept = next(tensor for tensor in after.graph.initializer if tensor.name == names["w"])
    np.testing.assert_array_equal(numpy_helper.to_array(kept), values)
    assert after.ByteSize() < size - 400
    assert [node.op_type for node in after.graph.node] == ["MatMul", "Add", "Reshape"]


def test_inputs_outputs_and_metadata_keep_their_names() -> None:
    """Callers know these."""
    after, _ = compacted(graph(product()), ["w"])
    assert [entry.name for entry in after.graph.input] == ["input"]
    assert [entry.name for entry in after.graph.output] == ["output"]
    assert {entry.key: entry.value for entry in after.metadata_props} == {"labels": "cat,dog"}
    assert after.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("kind", ["half", "quantized", "custom", "overridable", "control flow"])
def test_a_graph_that_folding_could_change_is_left_alone(kind: str) -> None:
    """Byte for byte."""
    nodes = product()
    if kind == "half":
        nodes.insert(0, helper.make_node("Cast", ["input"], ["half"], to=TensorProto.FLOAT16))
    elif kind == "quantized":
        nodes.insert(0, helper.make_node("DynamicQuantizeLinear", ["input"], ["codes", "scale", "zero"]))
    elif kind == "custom":
        nodes.insert(0, helper.make_node("Mystery", ["input"], ["unknown"], domain="elsewhere"))
    elif kind == "control flow":
        inner = helper.make_graph([], "branch", [], [helper.make_tensor_value_info("input", TensorProto.FLOAT, None)])
        nodes.insert(0, helper.make_node("If", ["condition"], ["chosen"], then_branch=inner, else_branch=inner))
    before = graph(nodes)
    if kind == "overridable":
        before.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [ROWS, COLUMNS]))
    text = before.SerializeToString(deterministic=True)
    after, names = compacted(before, ["w"])
    assert after.SerializeToString(deterministic=True) == text
    assert names == {"w": "w"}
