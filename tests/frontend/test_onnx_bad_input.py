"""Bad ONNX files: a clear error before any work, or a weight left alone and reported; never a wrong model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, external_data_helper, helper, numpy_helper, parser

from guidedq.errors import ModelError
from guidedq.frontend import onnx_file
from guidedq.frontend.onnx import load_onnx
from guidedq.ir.model import check_sites
from guidedq.ir.program import TorchProgram

TEXT = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[n, 5] x) => (float[n, 3] logits)
{
    a = MatMul (x, first)
    b = Relu (a)
    logits = MatMul (b, second)
}
"""


def _model(text=TEXT):
    random = np.random.default_rng(0)
    model = parser.parse_model(text)
    for name, shape in (("first", (5, 4)), ("second", (4, 3))):
        model.graph.initializer.append(numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name))
    return model


def _refused(folder, model, match):
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=match):
        load_onnx(path)


def _loaded(folder, model):
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return load_onnx(path)


def test_a_circle_is_refused(tmp_path):
    _refused(tmp_path, _model(TEXT.replace("a = MatMul (x, first)", "a = MatMul (b, first)")), "reads 'b'.*circle")


def test_a_loose_end_is_refused_and_named(tmp_path):
    _refused(tmp_path, _model(TEXT.replace("Relu (a)", "Relu (nothing)")), "'nothing', which nothing makes")


def test_an_output_that_nothing_makes_is_refused(tmp_path):
    model = _model()
    model.graph.output[0].name = "absent"
    _refused(tmp_path, model, "no node makes the output 'absent'")


def test_outputs_that_depend_on_no_input_are_refused(tmp_path):
    _refused(tmp_path, _model(TEXT.replace("a = MatMul (x, first)", "a = Neg (first)")), "logits are constant")


def test_an_output_that_is_constant_does_not_take_the_place_of_one_that_is_not(tmp_path):
    text = TEXT.replace("=> (float[n, 3] logits)", "=> (float[5, 4] fixed, float[n, 3] y)").replace("logits", "y")
    model = _loaded(tmp_path, _model(text.replace("b = Relu (a)", "b = Relu (a) fixed = Neg (first)")))
    assert model.output is not None
    assert model.output.name == "y"


@pytest.mark.parametrize("place", ["initializer", "node"])
def test_a_name_that_stands_for_two_values_is_refused(tmp_path, place):
    model = _model()
    if place == "initializer":
        model.graph.initializer.append(model.graph.initializer[0])
    else:
        model.graph.node[1].output[0] = "a"
        model.graph.node[2].input[0] = "a"
    _refused(tmp_path, model, "stand for two values")


def test_an_input_with_an_axis_of_length_zero_is_refused(tmp_path):
    _refused(tmp_path, _model(TEXT.replace("float[n, 5] x", "float[n, 0] x")), "axis of length zero")


@pytest.mark.parametrize("dims", [[2**40, 2**40], [-5, 4]])
def test_a_shape_that_overflows_is_refused(tmp_path, dims):
    model = _model()
    model.graph.initializer[0].dims[:] = dims
    _refused(tmp_path, model, "which cannot be")


def test_values_that_do_not_fit_their_shape_are_refused(tmp_path):
    model = _model()
    tensor = TensorProto(name="first", data_type=TensorProto.FLOAT, dims=[5, 4], float_data=[1.0] * 7)
    model.graph.initializer[0].CopyFrom(tensor)
    _refused(tmp_path, model, "damaged")


def test_a_place_of_external_data_that_is_no_number_is_refused(tmp_path):
    model = _model()
    (tmp_path / "data.bin").write_bytes(bytes(80))
    external_data_helper.set_external_data(model.graph.initializer[0], "data.bin", offset=0, length=80)
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].external_data[1].value = "first"
    _refused(tmp_path, model, "no readable place")


def test_a_file_that_no_message_can_hold_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "LARGEST_FILE", 100)
    _refused(tmp_path, _model(), "more than the 2 GiB")


def test_a_domain_that_nobody_knows_is_refused(tmp_path):
    model = _model()
    model.graph.node[1].domain = "somebody.else"
    model.opset_import.append(helper.make_opsetid("somebody.else", 1))
    _refused(tmp_path, model, "neither torch nor ONNX Runtime can run")


def test_a_weight_that_is_computed_is_left_alone(tmp_path):
    text = TEXT.replace("a = MatMul (x, first)", "s = Softmax (first) a = MatMul (x, s)")
    model = _loaded(tmp_path, _model(text))
    assert [site.name for site in model.graph.sites] == ["second"]


def test_a_weight_that_is_an_input_is_left_alone(tmp_path):
    text = TEXT.replace("(float[n, 5] x)", "(float[n, 5] x, float[5, 4] given)").replace("first)", "given)")
    model = _loaded(tmp_path, _model(text))
    assert [site.name for site in model.graph.sites] == ["second"]
    assert [spec.sample_axis for spec in model.inputs] == [0, None]
    x, given = torch.randn(6, 5), torch.randn(5, 4)
    found = model.program.predict({"x": x, "given": given.expand(6, 5, 4)})
    torch.testing.assert_close(found, torch.relu(x @ given) @ model.program.parameter("second"))


QUANTIZED = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[n, 32] x) => (float[n, 3] logits)
{
    codes = QuantizeLinear (x, step, zero)
    rounded = DequantizeLinear (codes, step, zero)
    weight = DequantizeLinear (stored, step)
    a = MatMul (rounded, weight)
    b = MatMul (a, wide)
    logits = MatMul (b, second)
}
"""


def _quantized():
    random = np.random.default_rng(0)
    arrays = {
        "stored": random.integers(-100, 100, size=(32, 16), dtype=np.int8), "zero": np.array(0, dtype=np.int8),
        "step": np.array(0.02, dtype=np.float32), "wide": random.normal(size=(16, 20)).astype(np.float32),
        "second": random.normal(size=(20, 3)).astype(np.float32),
    }  # fmt: skip
    model = parser.parse_model(QUANTIZED)
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in arrays.items())
    return model


def test_a_model_that_is_quantized_already_is_refused_with_that_reason(tmp_path):
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    net (float[n, 20] x) => (float[n, 20] y)
    {
        codes, scale, zero = DynamicQuantizeLinear (x)
        sums = MatMulInteger (codes, w, zero)
        wide = Cast <to = 1> (sums)
        y = Mul (wide, scale)
    }
    """
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((20, 20), dtype=np.int8), "w"))
    with pytest.raises(ModelError, match=r"no quantizable site.* MatMulInteger reads are quantized already"):
        check_sites(_loaded(tmp_path, model))


def test_weights_that_are_quantized_already_are_left_alone_and_reported(tmp_path):
    model = _loaded(tmp_path, _quantized())
    assert isinstance(model.program, TorchProgram)
    assert [site.name for site in model.graph.sites] == ["wide", "second"]
    assert any("DequantizeLinear reads are quantized already" in notice for notice in model.notices)


def test_gradients_pass_through_the_rounding_of_activations(tmp_path):
    text = QUANTIZED.replace("a = MatMul (rounded, weight)", "a = MatMul (x, weight)")
    text = text.replace("b = MatMul (a, wide)", "c = MatMul (a, wide) d = QuantizeLinear (c, big, zero) "
                        "b = DequantizeLinear (d, big, zero)")  # fmt: skip
    proto = _quantized()
    model = parser.parse_model(text)
    model.graph.initializer.extend([*proto.graph.initializer, numpy_helper.from_array(np.float32(4.0), "big")])
    loaded = _loaded(tmp_path, model)
    assert isinstance(loaded.program, TorchProgram)
    wide = loaded.program.parameter("wide").clone().requires_grad_()
    with loaded.program.replaced({"wide": wide}):
        loaded.program.module(x=torch.randn(4, 32)).square().sum().backward()
    assert wide.grad is not None
    assert float(wide.grad.norm()) > 0


def test_a_file_in_half_precision_is_guided_and_its_weights_found(tmp_path):
    model = _model(TEXT.replace("float[", "float16["))
    for tensor in model.graph.initializer:
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    loaded = _loaded(tmp_path, model)
    assert isinstance(loaded.program, TorchProgram)
    assert [site.name for site in loaded.graph.sites] == ["first", "second"]
    assert loaded.program.predict({"x": torch.randn(2, 5).half()}).dtype is torch.float32
