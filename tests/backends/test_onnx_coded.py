"""Rice codes in the file: what ONNX Runtime makes of them, and what they take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from onnx_models import quantized
from test_onnx_numerics import (
    all_rows,
    check,
    convolution,
    embedding,
    gemm,
    operators,
    plain_linear,
    read_oddly,
    tied,
    transposed_linear,
    upsampling,
)

from guidedq.artifacts.quantized_weight import EntropySegment, QuantizedWeight
from guidedq.backends.onnx.backend import CODED_PARAMETERS, OnnxBackend
from guidedq.errors import FormatError
from guidedq.quant.entropy import stream_bytes
from guidedq.quant.formats import EntropyFormat

BITS = [0.5, 1.5, 2.5, 3.5, 5.0, 6.0]
SOURCES = [transposed_linear, plain_linear, gemm, embedding, tied, convolution, upsampling, read_oddly]


def rice(bits: float) -> EntropyFormat:
    return EntropyFormat(bits=bits, code="rice")


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
@pytest.mark.parametrize("bits", BITS)
def test_the_runtime_computes_with_the_values_that_were_coded(bits: float, source, tmp_path: Path) -> None:
    opset = 13 if bits in (1.5, 5.0) else 21
    check(source(tmp_path, opset=opset), all_rows(rice(bits)), tmp_path)


def test_nothing_of_the_unpacking_is_left_once_the_model_is_loaded(tmp_path: Path) -> None:
    assert operators(check(convolution(tmp_path), all_rows(rice(3.0)), tmp_path)) == ["Conv"]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 64), (7, 3), (64, 9)], ids=str)
def test_odd_shapes_are_held(rows: int, columns: int, tmp_path: Path) -> None:
    check(plain_linear(tmp_path, rows=rows, columns=columns), all_rows(rice(2.5)), tmp_path)


@pytest.mark.parametrize("code", [0, 255])
def test_the_outermost_codes_come_back(code: int, tmp_path: Path) -> None:
    model, _ = plain_linear(tmp_path)
    weights = quantized(model, all_rows(rice(4.0)))
    for weight in weights:
        (segment,) = weight.segments
        segment.codes[0, 0] = code
    (tmp_path / "out").mkdir()
    OnnxBackend().emit(model, weights, tmp_path / "out")
    weight = weights[0]
    ones = torch.eye(weight.shape[1])[None]
    assert torch.equal(OnnxBackend().open(model, tmp_path / "out")({"x": ones})[0].t(), weight.dequantize())


def test_a_file_takes_what_the_footprint_says_but_for_the_streams(tmp_path: Path) -> None:
    model, _ = convolution(tmp_path)
    footprint = OnnxBackend().footprint(model, [rice(bits) for bits in BITS])
    for number, bits in enumerate(BITS):
        weights = quantized(model, all_rows(rice(bits)))
        folder = tmp_path / str(number)
        folder.mkdir()
        emission = OnnxBackend().emit(model, weights, folder)
        counted, streams = footprint.base_bytes, 0
        for weight in weights:
            site = footprint.sites[weight.name]
            index = site.formats.index(rice(bits))
            counted += site.bytes({index: weight.shape[0]})
            streams += stream_surplus(weight, site.code_bytes[index])
        assert abs(emission.bytes - counted - streams) < 350  # functions of other formats, lengths of lengths


def stream_surplus(weight: QuantizedWeight, code_bytes: int) -> int:
    (segment,) = weight.segments
    assert isinstance(segment, EntropySegment)
    size = stream_bytes(segment.codes, segment.format, segment.column_exponents, thorough=True)
    return size - weight.shape[0] * code_bytes


def test_small_models_are_coded_unasked_and_large_ones_when_asked(tmp_path: Path) -> None:
    model, _ = plain_linear(tmp_path)
    assert model.parameters < CODED_PARAMETERS
    assert OnnxBackend().entropy_code(model, asked=False) == "rice"
    assert OnnxBackend().own_rounding(model, [rice(3.0)]) is None


def test_huffman_streams_are_refused(tmp_path: Path) -> None:
    model, _ = plain_linear(tmp_path)
    weights = quantized(model, all_rows(EntropyFormat(bits=3.0)))
    (tmp_path / "out").mkdir()
    with pytest.raises(FormatError, match="ONNX cannot hold entropy"):
        OnnxBackend().emit(model, weights, tmp_path / "out")
