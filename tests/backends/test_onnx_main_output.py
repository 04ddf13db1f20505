"""The runtime's output is the one that the original's program returns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from guidedq.artifacts.quantized_weight import float_weight
from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.frontend.onnx import load_onnx
from guidedq.quant.formats import FloatFormat


def softmax_classifier(path: Path) -> None:
    """A hidden value first among the outputs, probabilities second."""
    generator = np.random.default_rng(0)
    first = numpy_helper.from_array(generator.normal(size=(8, 16)).astype(np.float32), "first")
    second = numpy_helper.from_array(generator.normal(size=(16, 5)).astype(np.float32), "second")
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 5])],
        [first, second],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def test_probabilities_are_compared_as_their_logarithm(tmp_path: Path) -> None:
    softmax_classifier(tmp_path / "model.onnx")
    model = load_onnx(tmp_path / "model.onnx")
    out = tmp_path / "out"
    out.mkdir()
    backend = OnnxBackend(accuracy_level=0)
    weights = [float_weight(site.name, model.matrix(site), FloatFormat()) for site in model.graph.quantizable]
    backend.emit(model, weights, out)
    batch = {"x": torch.randn(3, 8, generator=torch.Generator().manual_seed(0))}
    stored = {weight.name: model.graph.site(weight.name).stored(weight.dequantize()) for weight in weights}
    expected = model.program.predict(batch, weights=stored)
    torch.testing.assert_close(backend.open(model, out)(batch), expected, rtol=1e-4, atol=1e-4)
