"""Files in the qdq style give the same numbers in OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integer_networks import convolutions, products
from onnx_models import quantized, reference, relative_error
from test_onnx_integer import CODES_OFF, samples_of, whole
from test_onnx_numerics import (
    TOLERANCE,
    Source,
    all_rows,
    convolution,
    embedding,
    gemm,
    plain_linear,
    recurrent,
    tied,
    transposed_linear,
    upsampling,
)

from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.quant.formats import AffineFormat

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""By default OpenVINO rounds what such products read to int8, as ONNX Runtime does at accuracy level 4."""
COLUMNS = 128


def opened(path: Path, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first output, as OpenVINO computes it on the CPU."""
    openvino: Any = pytest.importorskip("openvino")
    core = openvino.Core()
    return core.compile_model(core.read_model(str(path)), "CPU", EXACT)(dict(feeds))[0]


@pytest.mark.parametrize("bits", [2, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "source",
    [transposed_linear, plain_linear, gemm, embedding, tied, convolution, upsampling, recurrent],
    ids=lambda source: source.__name__,
)
def test_every_kind_of_site_gives_the_same_numbers(
    source: Callable[..., Source], symmetric: bool, bits: int, tmp_path: Path
) -> None:
    wide = {} if source in (convolution, upsampling, recurrent) else {"columns": COLUMNS}
    model, feeds = source(tmp_path, **wide)
    weights = quantized(model, all_rows(AffineFormat(bits=bits, group_size=64, symmetric=symmetric)))
    (tmp_path / "out").mkdir()
    path = OnnxBackend(style="qdq").emit(model, weights, tmp_path / "out").weights_file
    assert relative_error(opened(path, feeds), reference(model, weights, feeds)) < TOLERANCE


@pytest.mark.parametrize("network", [convolutions, products])
def test_static_integers_give_the_same_numbers(network: Any, tmp_path: Path) -> None:
    model, backend = network(tmp_path), OnnxBackend(style="qdq", activations="static")
    weights, rounding = quantized(model, all_rows(AffineFormat(bits=4, group_size=0))), whole(model, backend)
    (tmp_path / "out").mkdir()
    path = backend.emit(model, weights, tmp_path / "out", rounding).weights_file
    batch = samples_of(model).inputs
    stored = {weight.name: model.graph.site(weight.name).stored(weight.dequantize()) for weight in weights}
    expected = model.program.predict(batch, weights=stored, activations=rounding).numpy()
    found = opened(path, {name: values.numpy() for name, values in batch.items()})
    assert relative_error(found, expected) < CODES_OFF
