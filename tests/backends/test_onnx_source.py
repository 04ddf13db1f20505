"""Reading the user's own file: old operator sets are converted, where one message can hold the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from guidedq.backends.onnx import source
from guidedq.backends.onnx.source import read_source
from guidedq.errors import BackendError
from guidedq.ir.onnx_session import message_bytes


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file of opset 12, in which Squeeze takes its axes as an attribute."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Squeeze", ["a"], ["y"], axes=[1]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    stored = [from_array(np.ones((4, 3), np.float32), "w")]
    graph = helper.make_graph(nodes, "old", values[:1], values[1:], stored)
    path = tmp_path / "old.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7), path)
    return path


def test_an_old_opset_is_converted(old: Path) -> None:
    model = read_source(old)
    assert [entry.version for entry in model.opset_import] == [13]
    (squeeze,) = (node for node in model.graph.node if node.op_type == "Squeeze")
    assert len(squeeze.input) == 2


def test_a_model_that_is_too_large_for_the_converter_is_refused_and_a_new_one_of_that_size_is_not(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = message_bytes(onnx.load(str(old)))
    monkeypatch.setattr(source, "LARGEST_MESSAGE", size)
    read_source(old)
    monkeypatch.setattr(source, "LARGEST_MESSAGE", size - 1)
    with pytest.raises(BackendError, match=f"opset 12, expected at least 13, and takes {size} bytes"):
        read_source(old)
    monkeypatch.undo()
    onnx.save(read_source(old), old)
    monkeypatch.setattr(source, "LARGEST_MESSAGE", 0)
    assert [entry.version for entry in read_source(old).opset_import] == [13]
