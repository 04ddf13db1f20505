"""Activations in integers: ONNX Runtime's kernels give what torch emulates, and are really used."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from integer_networks import convolutions, loaded, products
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array, to_array
from onnx_models import counted_bytes, quantized

from guidedq.artifacts.samples import SampleSet
from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.backends.onnx.runtime import loaded_by_runtime
from guidedq.calibration.histograms import collect_histograms
from guidedq.errors import BackendError
from guidedq.ir.activation_rounding import ActivationRounding
from guidedq.ir.graph import Storage
from guidedq.progress import SilentProgress
from guidedq.quant.formats import AffineFormat, EntropyFormat, FloatFormat
from guidedq.quant.integer import WHOLE_CODE, integer_grid

CODES_OFF = 0.02
"""Relative to the largest output: where a sum falls between two codes, float and integer arithmetic may choose
differently, and each of a few layers may be one code off here and there."""
EIGHT = AffineFormat(bits=8, group_size=0)


def samples_of(model, count: int = 12) -> SampleSet:
    shape = (count, *(size for size in model.inputs[0].shape[1:]))
    return SampleSet(inputs={"x": torch.randn(shape, generator=torch.Generator().manual_seed(7))})


def whole(model, backend) -> ActivationRounding:
    """Rounding at every place of the backend, on grids of min-max."""
    places = backend.places(model)
    seen = collect_histograms(model, samples_of(model), places, gradients=False, seed=0, progress=SilentProgress())
    grids = {place.name: integer_grid(one.low, one.high) for place, one in zip(places, seen, strict=True)}
    return ActivationRounding(
        dynamic=tuple(name for place in places if place.dynamic for name in place.operators),
        inputs={name: grids[place.name] for place in places if not place.dynamic for name in place.operators},
        values={place.name: grids[place.name] for place in places if not place.operators},
        rows={
            site.name: 1 if site.storage is Storage.IN_OUT else 0
            for site in model.graph.sites
            if any(site.name in place.sites for place in places)
        },
        largest_code=backend.largest_code(),
    )


def saturates() -> bool:
    """Whether the runtime's integer products add in 16 bits here."""
    columns = 64
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, columns])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 1])],
        [from_array(np.full((columns, 1), WHOLE_CODE, np.int8), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": np.full((1, columns), 255, np.uint8)})[0].item() != columns * 255 * WHOLE_CODE


def written(model, backend, rounding, folder, format=EIGHT):
    """Emit, and give ONNX Runtime's output, torch's, and the kernels."""
    weights = quantized(model, lambda site: [format] * site.rows)
    emission = backend.emit(model, weights, folder, rounding)
    batch = samples_of(model).inputs
    stored = {weight.name: model.graph.site(weight.name).stored(weight.dequantize()) for weight in weights}
    expected = model.program.predict(batch, weights=stored, activations=rounding)
    loaded = loaded_by_runtime(emission.weights_file)
    return backend.open(model, folder)(batch), expected, Counter(node.op_type for node in loaded.graph.node), emission


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_convolutions_sums_and_averages_run_in_integers_as_torch_emulates_them(tmp_path, opset):
    model, backend = convolutions(tmp_path, opset), OnnxBackend(activations="static")
    found, expected, kernels, emission = written(model, backend, whole(model, backend), _folder(tmp_path))
    assert _distance(found, expected) < CODES_OFF
    assert (kernels["QLinearConv"], kernels["QLinearAdd"], kernels["QGemm"], kernels["Conv"]) == (2, 1, 1, 0)
    assert "ONNX Runtime computes in integers: 1 x QGemm, 2 x QLinearConv." in emission.notices


@pytest.mark.parametrize(
    "format",
    [AffineFormat(bits=3, group_size=16), EntropyFormat(bits=3.0, code="rice"), FloatFormat(dtype="fp16")],
    ids=str,
)
def test_any_stored_format_becomes_integers_at_load(tmp_path, format):
    model, backend = convolutions(tmp_path), OnnxBackend(activations="static")
    found, expected, kernels, _ = written(model, backend, whole(model, backend), _folder(tmp_path), format)
    assert _distance(found, expected) < CODES_OFF
    assert kernels["QLinearConv"] == 2


@pytest.mark.parametrize(
    ("activations", "expected_kernels"),
    [
        ("dynamic", {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 2, "DynamicQuantizeMatMul": 1}),
        ("static", {"QuantizeLinear": 2, "MatMulIntegerToFloat": 2, "QGemm": 1}),
    ],
)
@pytest.mark.parametrize("opset", [13, 20])
def test_products_run_in_integers_as_torch_emulates_them(tmp_path, activations, expected_kernels, opset):
    model, backend = products(tmp_path, opset), OnnxBackend(activations=activations)
    found, expected, kernels, _ = written(model, backend, whole(model, backend), _folder(tmp_path))
    assert _distance(found, expected) < CODES_OFF
    assert {kernel: kernels[kernel] for kernel in expected_kernels} == expected_kernels
    assert kernels["MatMul"] == kernels["Gemm"] == 0


def test_a_product_of_matrices_with_a_bias_after_it_runs_in_integers(tmp_path):
    generator = np.random.default_rng(3)
    stored = {"w": (16, 12), "b": (12,), "v": (12, 6), "c": (6,)}
    stored = [from_array(generator.normal(0, 0.3, shape).astype(np.float32), name) for name, shape in stored.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="up"),
        helper.make_node("Add", ["p", "b"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["q"], name="down"),
        helper.make_node("Add", ["c", "q"], ["y"]),
    ]
    model, backend = loaded(tmp_path, nodes, stored, ["n", 16], ["n", 6], 20), OnnxBackend(activations="static")
    found, expected, kernels, _ = written(model, backend, whole(model, backend), _folder(tmp_path))
    assert _distance(found, expected) < CODES_OFF
    assert kernels["Gemm"] == kernels["MatMul"] == 0


@pytest.mark.parametrize(("reduce_range", "largest_code"), [(True, 64), (False, 127)])
def test_codes_of_weights_fill_the_range_that_is_asked_for(tmp_path, reduce_range, largest_code):
    model = convolutions(tmp_path)
    backend = OnnxBackend(activations="static", reduce_range=reduce_range)
    _, _, _, emission = written(model, backend, whole(model, backend), _folder(tmp_path))
    loaded = loaded_by_runtime(emission.weights_file)
    stored = {tensor.name: to_array(tensor) for tensor in loaded.graph.initializer}
    convolved = [stored[node.input[3]] for node in loaded.graph.node if node.op_type == "QLinearConv"]
    assert len(convolved) == 2
    for codes in convolved:
        rows = np.abs(codes.reshape(len(codes), -1).astype(int)).max(1)
        assert (codes.dtype, rows.tolist()) == (np.int8, [largest_code] * len(codes))


@pytest.mark.parametrize(
    ("network", "activations"), [(convolutions, "static"), (products, "static"), (products, "dynamic")]
)
def test_either_range_of_codes_is_what_torch_emulates(tmp_path, network, activations):
    if saturates():
        pytest.skip("this processor adds products in 16 bits")
    model = network(tmp_path)
    ranges = {reduced: OnnxBackend(activations=activations, reduce_range=reduced) for reduced in (True, False)}
    made = {
        reduced: written(model, backend, whole(model, backend), _folder(tmp_path, str(reduced)))
        for reduced, backend in ranges.items()
    }
    for reduced, (found, expected, _, _) in made.items():
        other = made[not reduced][1]
        assert (found - expected).norm() < 0.5 * (found - other).norm()


def test_a_range_of_integer_weights_is_refused_where_there_are_none():
    with pytest.raises(BackendError, match="add --activations static or dynamic"):
        OnnxBackend(reduce_range=False)


def test_the_rounding_is_felt(tmp_path):
    model, backend = convolutions(tmp_path), OnnxBackend(activations="static")
    rounding = whole(model, backend)
    coarse = replace(rounding, values={name: integer_grid(0.0, 30.0) for name in rounding.values})
    found, expected, _, _ = written(model, backend, coarse, _folder(tmp_path))
    fine = written(model, backend, rounding, _folder(tmp_path, "fine"))[0]
    assert _distance(found, expected) < 0.25 * _distance(found, fine)


def test_a_site_that_stays_in_float_runs_in_float(tmp_path):
    model, backend = convolutions(tmp_path), OnnxBackend(activations="static")
    rounding = whole(model, backend)
    fewer = replace(
        rounding,
        rows={name: axis for name, axis in rounding.rows.items() if name != "w2"},
        values={name: grid for name, grid in rounding.values.items() if name != "c2"},
    )
    found, expected, kernels, emission = written(model, backend, fewer, _folder(tmp_path))
    assert _distance(found, expected) < CODES_OFF
    told = {name: nodes[0].operator for name, nodes in emission.runtime.sites.items()}
    assert (told["w1"], told["w2"] in ("Conv", "FusedConv")) == ("QLinearConv", True)
    assert kernels["QLinearConv"] == 1
    assert kernels["Conv"] + kernels["FusedConv"] == 1


@pytest.mark.parametrize("style", ["native", "qdq"])
@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_the_count_is_never_below_the_file_and_hardly_above(tmp_path, activations, style):
    model, backend = products(tmp_path), OnnxBackend(activations=activations, style=style)
    formats = [AffineFormat(bits=bits, group_size=16) for bits in (2, 3, 4, 8)]
    footprint = backend.footprint(model, formats)
    weights = quantized(model, lambda site: [formats[1]] * site.rows)
    emission = backend.emit(model, weights, _folder(tmp_path), whole(model, backend))
    assert 0 <= counted_bytes(footprint, weights) - emission.bytes <= 80


def test_products_that_stay_in_float_are_written_as_they_were_counted(tmp_path):
    model, backend = products(tmp_path), OnnxBackend(activations="dynamic")
    footprint = backend.footprint(model, [EIGHT])
    fewer = replace(whole(model, backend), rows={"w3": 0}, dynamic=("head",))
    found, expected, kernels, emission = written(model, backend, fewer, _folder(tmp_path))
    weights = quantized(model, lambda site: [EIGHT] * site.rows)
    assert emission.bytes <= counted_bytes(footprint, weights)
    assert _distance(found, expected) < CODES_OFF
    assert (kernels["MatMul"], kernels["MatMulNBits"], kernels["DynamicQuantizeMatMul"]) == (2, 0, 1)


def test_what_several_products_read_is_one_place(tmp_path):
    places = OnnxBackend(activations="dynamic").places(products(tmp_path))
    assert [(place.operators, place.sites) for place in places] == [
        (("left", "right"), ("w1", "w2")),
        (("head",), ("w3",)),
    ]


def test_a_model_without_such_nodes_is_refused(tmp_path):
    nodes = [helper.make_node("Gather", ["table", "i"], ["t"]), helper.make_node("Mul", ["x", "t"], ["y"])]
    stored = [from_array(np.ones((4, 8), np.float32), "table"), from_array(np.array([1]), "i")]
    model = loaded(tmp_path, nodes, stored, ["n", 8], ["n", 8], 20)
    with pytest.raises(BackendError, match="leave --activations static out"):
        OnnxBackend(activations="static").places(model)


def test_a_model_that_is_no_onnx_file_is_refused(tmp_path):
    model = replace(products(tmp_path), source="hugging_face")
    with pytest.raises(BackendError, match="takes ONNX files"):
        OnnxBackend(activations="dynamic").places(model)


def _folder(tmp_path: Path, name: str = "out") -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


def _distance(found, expected) -> float:
    return float((found - expected).abs().max() / expected.abs().max())
