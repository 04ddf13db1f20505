"""The forward-only program: what ONNX Runtime gives, with other weights, observed activations and rounding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from guidedq.errors import ModelError
from guidedq.frontend.onnx import load_onnx
from guidedq.ir import forward_only
from guidedq.ir.activation_rounding import ActivationRounding, round_activations
from guidedq.ir.forward_only import ForwardOnlyProgram
from guidedq.ir.onnx_session import message_bytes

WIDTH = 20


def _weights(seed=0):
    random = np.random.default_rng(seed)
    return {
        "up.weight": random.normal(size=(WIDTH, 24)).astype(np.float32),
        "bias": random.normal(size=(24,)).astype(np.float32),
        "down.weight": random.normal(size=(7, 24)).astype(np.float32),
    }


def _model(weights, domain="com.microsoft", opset=18):
    """The bias is stored sparsely, which torch cannot read: the whole graph is left to the runtime."""
    nodes = [
        helper.make_node("MatMul", ["x", "up.weight"], ["a"], name="up"),
        helper.make_node("BiasGelu", ["a", "bias"], ["b"], name="gelu", domain=domain),
        helper.make_node("Gemm", ["b", "down.weight"], ["y"], name="down", transB=1, alpha=0.5),
    ]
    graph = helper.make_graph(
        nodes,
        "custom",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 7])],
        [numpy_helper.from_array(value, name) for name, value in weights.items() if name != "bias"],
        sparse_initializer=[_sparse(weights["bias"], "bias")],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _sparse(values, name):
    places = numpy_helper.from_array(np.arange(len(values)), "places")
    return helper.make_sparse_tensor(numpy_helper.from_array(values, name), places, [len(values)])


def _reference(x, weights):
    hidden = torch.nn.functional.gelu(x @ torch.from_numpy(weights["up.weight"]) + torch.from_numpy(weights["bias"]))
    return hidden, 0.5 * hidden @ torch.from_numpy(weights["down.weight"]).t()


@pytest.fixture(name="loaded")
def _loaded(tmp_path):
    path = tmp_path / "custom.onnx"
    onnx.save(_model(_weights()), path)
    return load_onnx(path)


def test_a_constant_that_torch_cannot_read_makes_the_whole_graph_forward_only_and_is_named(loaded):
    assert isinstance(loaded.program, ForwardOnlyProgram)
    assert not loaded.program.differentiable
    notice = loaded.notices[0]
    assert "'bias'" in notice
    assert "forward-only" in notice


def test_forward_only_predicts_what_the_formula_says(loaded):
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded.program.predict({"x": x}), _reference(x, _weights())[1], rtol=1e-5, atol=1e-5)


def test_forward_only_predicts_with_replaced_weights_and_keeps_its_own(loaded):
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    other = _weights(seed=9)
    before = loaded.program.predict({"x": x})
    names = ("up.weight", "down.weight")
    replaced = {name: torch.from_numpy(other[name]) for name in names}
    expected = _reference(x, _weights() | {name: other[name] for name in names})[1]
    torch.testing.assert_close(loaded.program.predict({"x": x}, weights=replaced), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded.program.predict({"x": x}), before, rtol=0, atol=0)


def test_forward_only_observes_what_its_operators_would_be_given(loaded):
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    hidden, output = _reference(x, _weights())
    seen = loaded.program.observe({"x": x}, {"up": None, "down": None})
    torch.testing.assert_close(seen["up"], x, rtol=0, atol=0)
    torch.testing.assert_close(seen["down"], 0.5 * hidden, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded.program.operator("down")(seen["down"]), output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("block_size", [8, 16, 32])
def test_rounding_in_the_graph_equals_rounding_in_torch(tmp_path, opset, block_size):
    path = tmp_path / "custom.onnx"
    onnx.save(_model(_weights(), opset=opset), path)
    program = load_onnx(path).program
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    x[0] = 0
    found = program.predict({"x": x}, activations=ActivationRounding(operators={"up": block_size}))
    expected = _reference(round_activations(x, block_size), _weights())[1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_model_of_more_than_one_message_is_refused_and_its_size_told(tmp_path, monkeypatch):
    proto = _model(_weights())
    onnx.save(proto, tmp_path / "custom.onnx")
    assert sum(tensor.ByteSize() for tensor in proto.graph.initializer) < message_bytes(proto) < proto.ByteSize()
    monkeypatch.setattr(forward_only, "LARGEST_MESSAGE", message_bytes(proto) - 1)
    with pytest.raises(ModelError, match=f"takes {message_bytes(proto)} bytes"):
        load_onnx(tmp_path / "custom.onnx")


def test_an_operator_that_nobody_knows_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "alien.onnx"
    onnx.save(_model(_weights(), domain="org.alien"), path)
    with pytest.raises(ModelError, match="BiasGelu"):
        load_onnx(path)


def test_forward_only_reports_inputs_that_do_not_fit(loaded):
    with pytest.raises(ModelError, match="takes the inputs"):
        loaded.program.predict({"z": torch.zeros(1, WIDTH)})
