"""What is no site is stored in 16 bits if asked, unless its values are out of range."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_models import counted_bytes, onnx_model, quantized, reference, relative_error
from test_onnx_numerics import all_rows, normal, site

from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.backends.onnx.casting import CAST_ELEMENTS, cast_tensors, fits
from guidedq.backends.onnx.runtime import loaded_by_runtime
from guidedq.ir.graph import Storage, UseKind
from guidedq.ir.model import InputSpec, Model
from guidedq.quant.formats import AffineFormat

THREE_BITS = AffineFormat(bits=3, group_size=64)


def biased(folder: Path, bias: np.ndarray, *, constant: bool = False) -> Model:
    """A product, then a bias, which is an initializer or a Constant."""
    tensor = numpy_helper.from_array(bias.astype(np.float32), "bias")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "bias"], ["y"])]
    if constant:
        nodes.insert(0, helper.make_node("Constant", [], ["bias"], value=tensor))
    sites = [site("w", (64, 40), UseKind.LINEAR, storage=Storage.IN_OUT)]
    spec = InputSpec(name="x", dtype=torch.float32, shape=(None, None, 64))
    return onnx_model(folder, nodes, {"w": normal(64, 40)}, sites, [spec], others=[] if constant else [tensor])


def floats(path: Path) -> dict[int, int]:
    """Elements of float tensors in the file, by data type."""
    graph = onnx.load_model(str(path)).graph
    tensors = [*graph.initializer, *(item.t for node in graph.node for item in node.attribute if item.HasField("t"))]
    return {kind: sum(int(np.prod(t.dims)) for t in tensors if t.data_type == kind) for kind in (1, 10, 16)}


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("cast", ["fp16", "bf16"])
def test_a_bias_takes_half_the_bytes_and_is_restored_at_load(cast: str, constant: bool, tmp_path: Path) -> None:
    model = biased(tmp_path, normal(40, seed=3), constant=constant)
    backend = OnnxBackend(cast=cast, accuracy_level=0)  # pyright: ignore[reportArgumentType]
    weights = quantized(model, all_rows(THREE_BITS))
    (tmp_path / "out").mkdir()
    emission = backend.emit(model, weights, tmp_path / "out")
    kind = TensorProto.FLOAT16 if cast == "fp16" else TensorProto.BFLOAT16
    scales = 40 if cast == "fp16" else 0
    assert floats(emission.weights_file)[kind] == 40 + scales
    assert {node.op_type for node in loaded_by_runtime(emission.weights_file).graph.node} <= {"MatMulNBits", "Add"}
    feeds = {"x": normal(2, 3, 64, seed=1)}
    found = backend.load(tmp_path / "out").run(None, feeds)[0]
    error = relative_error(found, reference(model, weights, feeds))
    assert 1e-7 < error < (1e-3 if cast == "fp16" else 1e-2)
    assert 0 <= counted_bytes(backend.footprint(model, [THREE_BITS]), weights) - emission.bytes < 1500


@pytest.mark.parametrize("factor", [1e6, 1e-9])
def test_what_overflows_or_vanishes_stays_in_float32_and_is_told(factor: float, tmp_path: Path) -> None:
    model = biased(tmp_path, factor * normal(40, seed=3))
    (tmp_path / "out").mkdir()
    emission = OnnxBackend(cast="fp16").emit(model, quantized(model, all_rows(THREE_BITS)), tmp_path / "out")
    assert floats(emission.weights_file)[TensorProto.FLOAT] >= 40
    assert any("stay in float32" in notice and "bias" in notice for notice in emission.notices)


def test_the_range_is_that_of_the_type() -> None:
    largest = torch.tensor([65504.0])
    assert fits(largest, torch.float16) and not fits(2 * largest, torch.float16)
    assert fits(2 * largest, torch.bfloat16) and fits(0 * largest, torch.float16)


def test_scales_of_quantized_nodes_small_tensors_and_sites_are_left_alone(tmp_path: Path) -> None:
    model = biased(tmp_path, normal(40))
    proto = onnx.load_model(str(model.path))
    for name, size in (("scale", 40), ("few", CAST_ELEMENTS - 1)):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(size, dtype=np.float32), name))
    proto.graph.node.append(helper.make_node("DequantizeLinear", ["codes", "scale"], ["d"]))
    cast_tensors(proto, {"w"}, "fp16", {})
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert {kinds[name] for name in ("w", "scale", "few")} == {TensorProto.FLOAT} and "bias" not in kinds


def test_sites_left_alone_are_of_the_type_that_was_asked_for(tmp_path: Path) -> None:
    model = biased(tmp_path, normal(40))
    footprint = OnnxBackend(cast="bf16").footprint(model, [THREE_BITS])
    assert str(footprint.sites["w"].formats[-1]) == "bf16"
