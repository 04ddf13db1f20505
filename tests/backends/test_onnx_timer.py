"""Kernels that are timed: each is the one it says, and a site is timed by those that run it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from integer_networks import convolutions, products

from guidedq.artifacts.profile import Kernel, operator_text, parsed_operator
from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.backends.onnx.kernel_models import kernel_model
from guidedq.backends.onnx.stopwatch import kernel_seconds, typical
from guidedq.errors import BackendError, ProfileError
from guidedq.progress import SilentProgress
from guidedq.quant.formats import AffineFormat, EntropyFormat

TIMER = OnnxBackend().timer()


def smaller(kernel: Kernel) -> bool:
    return kernel.work < 2**22


@pytest.mark.parametrize("kernel", [kernel for kernel in TIMER.grid() if smaller(kernel)], ids=lambda k: k.operator)
def test_every_kernel_of_the_grid_runs_as_the_operator_that_it_says(kernel, tmp_path):
    model, feeds = kernel_model(kernel)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result = session.run(None, dict(feeds))[0]
    name, _ = parsed_operator(kernel.operator)
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert found["MatMulNBits" if name == "MixedMatMulNBits" else name] > 0
    results = kernel.rows if kernel.rows > 1 else kernel.columns
    assert result.size == kernel.tokens * results


def test_every_operator_of_the_grid_is_tried_above():
    tried = {kernel.operator for kernel in TIMER.grid() if smaller(kernel)}
    assert tried == {kernel.operator for kernel in TIMER.grid()}


def test_operators_with_options_are_read_as_they_are_written():
    assert parsed_operator(operator_text("MatMul")) == ("MatMul", {})
    text = operator_text("MatMulNBits", bits=4, block_size=32)
    assert text == "MatMulNBits{bits=4 block-size=32}"
    assert parsed_operator(text) == ("MatMulNBits", {"bits": 4, "block_size": 32})
    with pytest.raises(ProfileError, match="Magic"):
        kernel_model(Kernel(operator="Magic", tokens=1, columns=1, rows=1))


def test_sixty_four_times_the_work_takes_longer():
    few, many = (kernel_model(Kernel(operator="MatMul", tokens=t, columns=256, rows=256)) for t in (2, 128))
    seconds = kernel_seconds([few, many], threads=1)
    assert 0 < seconds[0] < seconds[1]


def test_what_slows_some_calls_down_is_left_out():
    assert typical([3.0, 1.0, 900.0, 2.0, 800.0]) == 2.0


def test_convolutions_and_products_are_timed_in_floats_and_integers(tmp_path):
    model, backend = convolutions(tmp_path), OnnxBackend(activations="static")
    formats = [EntropyFormat(bits=3.0, code="rice"), AffineFormat(bits=8, group_size=0)]
    inputs = {"first": (1, 3, 6, 6), "second": (1, 8, 6, 6), "head": (1, 8)}
    sites = backend.timer(model).kernels(model, backend.footprint(model, formats), inputs)
    assert [kernel.operator for kernel in sites["w1"].all] == ["Conv", "QLinearConv"]
    (first,), (head,) = sites["w1"].original, sites["w3"].original
    assert (first.tokens, first.columns, first.rows) == (36, 27, 8)
    assert first.window == (6, 6, 3, 3, 1, 1, 1)
    assert (head.operator, head.shape) == ("MatMul", "1x8x5")
    assert sites["w3"].integer[0].operator == "MatMulIntegerToFloat"
    assert set(sites["w1"].formats) == {sites["w1"].original}


def test_packed_formats_are_timed_in_their_containers(tmp_path):
    model, backend = products(tmp_path), OnnxBackend()
    formats = [AffineFormat(bits=bits, group_size=32) for bits in (2, 3, 6)]
    inputs = {"left": (1, 5, 16), "right": (1, 5, 16), "head": (1, 60)}
    footprint = backend.footprint(model, formats)
    sites = backend.timer(model).kernels(model, footprint, inputs)
    held = dict(zip(footprint.sites["w3"].formats, sites["w3"].formats, strict=True))
    bits = {format.bits: parsed_operator(kernel.operator)[1].get("bits") for format, (kernel,) in held.items()}
    assert bits == {2: 2, 3: 4, 6: 8, 16: None}
    assert sites["w1"].original[0].tokens == 5
    assert sites["w1"].integer == ()


def test_rounding_is_timed_once_for_all_that_read_a_value(tmp_path):
    model, backend = products(tmp_path), OnnxBackend(activations="dynamic")
    inputs = {"left": (1, 5, 16), "right": (1, 5, 16), "head": (1, 60)}
    found = backend.timer(model).rounding(backend.places(model), inputs)
    assert {name: (kernel.operator, kernel.shape) for name, kernel in found.items()} == {
        "x": ("DynamicQuantizeLinear", "5x16x1"),
        "f": ("DynamicQuantizeLinear", "1x60x1"),
    }


def test_a_whole_model_is_timed_beside_what_was_made_of_it(tmp_path):
    model = products(tmp_path)
    batch = {"x": np.zeros((1, 5, 16), dtype=np.float32)}
    import torch

    seconds = TIMER.latencies(model, {name: torch.from_numpy(v) for name, v in batch.items()}, (), threads=1)
    assert len(seconds) == 1
    assert 0 < seconds[0] < 1


def test_kernels_that_are_refused_are_an_error():
    with pytest.raises(ProfileError, match="refuses"):
        TIMER.profile(
            [Kernel(operator="MatMulNBits{bits=3 block-size=32 accuracy-level=4}", tokens=1, columns=32, rows=32)],
            threads=1,
            progress=SilentProgress(),
        )


def test_other_backends_and_other_sources_cannot_be_timed():
    from guidedq.registry import parse_stage

    with pytest.raises(BackendError, match="--backend onnx"):
        parse_stage("torch", "backend").timer()
