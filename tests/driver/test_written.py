"""What was written is compared with what was rounded, whatever the model's size, before it is moved into place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

import guidedq
from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.errors import BackendError

SIZE = 32


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Of a compile of two square matrices with a tanh between."""
    generator = np.random.default_rng(0)
    stored = [from_array(generator.normal(0, 0.2, (SIZE, SIZE)).astype(np.float32), name) for name in ("w1", "w2")]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", SIZE]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "two", values[:1], values[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=generator.normal(size=(40, SIZE)).astype(np.float32))
    return {
        "model": tmp_path / "m.onnx",
        "budget": "20bits",
        "data": tmp_path / "data.npz",
        "recipe": "nearest",
        "out": tmp_path / "results" / "out",
        "workspace": tmp_path / "workspace",
    }


def swapped(weights: Iterable[QuantizedWeight]) -> list[QuantizedWeight]:
    """Two weights, each under the name of the other."""
    first, second = weights
    return [replace(first, name=second.name), replace(second, name=first.name)]


@pytest.mark.parametrize("exchanged", [False, True])
def test_a_file_with_two_weights_exchanged_is_refused_before_it_has_its_name(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, exchanged: bool
) -> None:
    emit = OnnxBackend.emit
    if exchanged:
        monkeypatch.setattr(OnnxBackend, "emit", lambda self, model, ws, *more: emit(self, model, swapped(ws), *more))
        with pytest.raises(BackendError, match="differs from the weights that were rounded"):
            guidedq.compile(**options)
        assert list(options["out"].parent.iterdir()) == []
    else:
        guidedq.compile(**options)
        assert (options["out"] / "model.onnx").is_file()
