"""Recurrent layers from a file to a smaller one: what ONNX Runtime gives is what the stored weights give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

import guidedq
from guidedq.frontend.onnx import load_onnx

WIDTH, HIDDEN, STEPS, CLASSES = 24, 32, 6, 5
GATES = {"LSTM": 4, "GRU": 3}


def write_model(path: Path, operator: str, dtype: type = np.float32) -> None:
    """A bidirectional layer, and a linear layer on its last states: a classifier of sequences `[n, step, in]`."""
    random = np.random.default_rng(4)
    shapes = {
        "W": (2, GATES[operator] * HIDDEN, WIDTH),
        "R": (2, GATES[operator] * HIDDEN, HIDDEN),
        "B": (2, 2 * GATES[operator] * HIDDEN),
        "head": (2 * HIDDEN, CLASSES),
    }
    arrays = {name: (random.normal(size=shape) / 4).astype(dtype) for name, shape in shapes.items()}
    arrays["whole"] = np.array([-1, 2 * HIDDEN])
    options = {"hidden_size": HIDDEN, "direction": "bidirectional"}
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0, 2]),
        helper.make_node(operator, ["turned", "W", "R", "B"], ["", "last"], **options),
        helper.make_node("Transpose", ["last"], ["by_sample"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["by_sample", "whole"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
    ]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "sequences",
        [helper.make_tensor_value_info("x", element, ["n", STEPS, WIDTH])],
        [helper.make_tensor_value_info("logits", element, ["n", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def run(model: Path | onnx.ModelProto, names: list[str] | None, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(names, {"x": x})


CASES = [
    ("LSTM", np.float32, "native", "coding=entropy"),
    ("GRU", np.float32, "native", "coding=fixed"),
    ("LSTM", np.float16, "qdq", "coding=fixed"),
]


@pytest.mark.parametrize(("operator", "dtype", "style", "coding"), CASES, ids=str)
def test_both_weights_of_a_recurrent_layer_are_stored_quantized(
    operator: str, dtype: type, style: str, coding: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    write_model(path, operator, dtype)
    random = np.random.default_rng(5)
    np.savez(tmp_path / "data.npz", x=random.normal(size=(64, STEPS, WIDTH)).astype(dtype))
    artifact = guidedq.compile(
        path,
        budget="9bits",
        data=tmp_path / "data.npz",
        out=tmp_path / "out",
        workspace=tmp_path / "workspace",
        backend=f"onnx{{names=keep style={style}}}",
        settings=[coding],
        effort="quick",
    )
    assert [site.name for site in artifact.report.sites] == ["W", "R", "head"]
    written, x = tmp_path / "out" / "model.onnx", random.normal(size=(4, STEPS, WIDTH)).astype(dtype)
    assert written.stat().st_size < 0.3 * _bytes(operator)
    proto = onnx.load(written)
    stored = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert not {"W", "R"} & stored.keys(), "stored under other names, and restored at load"
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    proto.graph.output.extend(helper.make_tensor_value_info(name, element, None) for name in ("W", "R"))
    found, *weights = run(proto, ["logits", "W", "R"], x)
    source = onnx.load(path)
    for tensor in source.graph.initializer:
        if tensor.name in ("W", "R"):
            tensor.CopyFrom(numpy_helper.from_array(weights["WR".index(tensor.name)], tensor.name))
    expected = torch.from_numpy(run(source, None, x)[0]).float()
    close = {"rtol": 0, "atol": 0.1 * float(expected.std())}  # the head is quantized too, and its inputs rounded
    torch.testing.assert_close(torch.from_numpy(found).float(), expected, **close)
    model = load_onnx(path)
    replaced = {name: torch.from_numpy(values) for name, values in zip("WR", weights, strict=True)}
    again = model.program.predict({"x": torch.from_numpy(x)}, weights=replaced)
    tolerance = 2e-2 if dtype is np.float16 else 1e-5
    torch.testing.assert_close(again, expected, rtol=tolerance, atol=tolerance)
    assert artifact.report.measured is not None and artifact.report.measured.kl < 0.01


def _bytes(operator: str) -> int:
    """Of the model's weights in float32."""
    return 4 * (2 * GATES[operator] * HIDDEN * (WIDTH + HIDDEN + 2) + 2 * HIDDEN * CLASSES)
