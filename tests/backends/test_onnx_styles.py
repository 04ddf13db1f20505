"""Other styles than the native one: the same numbers, with the bytes that the footprint says."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import ALL_WIDTHS, counted_bytes, quantized, random_choice, reference, relative_error
from test_onnx_bytes import LIBRARY_BYTES, network
from test_onnx_numerics import (
    SOURCES,
    TOLERANCE,
    Source,
    all_rows,
    convolution,
    embedding,
    gemm,
    operators,
    plain_linear,
    recurrent,
    tied,
    transposed_linear,
)

from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.backends.onnx.runtime import loaded_by_runtime
from guidedq.backends.onnx.settings import Style
from guidedq.errors import BackendError
from guidedq.ir.graph import Site
from guidedq.quant.formats import AffineFormat, FloatFormat, Format

WIDTHS = [AffineFormat(bits=bits, group_size=64, symmetric=bits in (3, 8)) for bits in range(2, 9)]
WIDTHS += [AffineFormat(bits=bits, group_size=0, symmetric=bits == 6) for bits in (2, 5, 6)]


def styled(source: Source, choose: Callable[[Site], Sequence[Format]], backend: OnnxBackend, out: Path) -> list[str]:
    """Write in a style, run, compare; gives the operators that the runtime runs."""
    model, feeds = source
    weights = quantized(model, choose)
    out.mkdir()
    emission = backend.emit(model, weights, out)
    assert relative_error(backend.load(out).run(None, feeds)[0], reference(model, weights, feeds)) < TOLERANCE
    formats = {segment.format for weight in weights for segment in weight.segments}
    footprint = backend.footprint(model, [format for format in formats if isinstance(format, AffineFormat)])
    if all({*site.formats} >= formats for site in footprint.sites.values()):
        assert 0 <= counted_bytes(footprint, weights) - emission.bytes < LIBRARY_BYTES
    return operators(loaded_by_runtime(emission.weights_file, backend.accuracy_level))


@pytest.mark.parametrize("format", WIDTHS, ids=str)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_every_width_gives_the_same_numbers_behind_dequantize_linear(
    source: Callable[..., Source], format: AffineFormat, tmp_path: Path
) -> None:
    backend = OnnxBackend(style="qdq", accuracy_level=0)
    found = styled(source(tmp_path), all_rows(format), backend, tmp_path / "out")
    if source is transposed_linear and format.group_size:
        assert found == ["MatMulNBits"]


@pytest.mark.parametrize("format", WIDTHS, ids=str)
@pytest.mark.parametrize("source", [plain_linear, embedding, tied, gemm], ids=lambda source: source.__name__)
def test_every_width_gives_the_same_numbers_baked(
    source: Callable[..., Source], format: AffineFormat, tmp_path: Path
) -> None:
    found = styled(source(tmp_path), all_rows(format), OnnxBackend(style="baked", accuracy_level=0), tmp_path / "out")
    assert {*found} & {"MatMulNBits", "GatherBlockQuantized"}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_two_bits_are_stored_in_two_where_the_opset_has_them(bits: int, tmp_path: Path) -> None:
    source = plain_linear(tmp_path, opset=25)
    backend = OnnxBackend(style="qdq", accuracy_level=0)
    styled(source, all_rows(AffineFormat(bits=bits, group_size=64)), backend, tmp_path / "out")
    stored = onnx.load_model(str(tmp_path / "out" / "model.onnx")).graph.initializer
    kinds = {2: "UINT2", 3: "UINT4", 4: "UINT4", 8: "UINT8"}
    assert onnx.TensorProto.DataType.Name(max(stored, key=lambda tensor: np.prod(tensor.dims)).data_type) == kinds[bits]


def test_older_operator_sets_are_converted_for_dequantize_linear(tmp_path: Path) -> None:
    backend = OnnxBackend(style="qdq", accuracy_level=0)
    found = styled(
        transposed_linear(tmp_path, opset=13), all_rows(AffineFormat(bits=3, group_size=32)), backend, tmp_path / "out"
    )
    assert found == ["MatMulNBits"]
    assert onnx.load_model(str(tmp_path / "out" / "model.onnx")).opset_import[0].version == 21


@pytest.mark.parametrize("style", ["qdq", "baked"])
@pytest.mark.parametrize(("external", "small"), [(False, True), (False, False), (True, False)])
def test_the_footprint_tells_the_bytes_of_the_container(
    external: bool, small: bool, style: Style, tmp_path: Path
) -> None:
    model = network(tmp_path, small=small)
    backend = OnnxBackend(style=style, external_bytes=0 if external else 10**10)
    footprint = backend.footprint(model, (*ALL_WIDTHS, AffineFormat(bits=3, group_size=64, symmetric=True)))
    for seed in range(3):
        weights = quantized(model, random_choice(footprint, seed), seed=seed)
        (tmp_path / f"out{seed}").mkdir()
        emission = backend.emit(model, weights, tmp_path / f"out{seed}")
        assert 0 <= counted_bytes(footprint, weights) - emission.bytes <= LIBRARY_BYTES + 64 * 40 * external
    sizes = {format: footprint.sites["u"].row_bytes[index] for index, format in enumerate(footprint.sites["u"].formats)}
    assert sizes[ALL_WIDTHS[1]] == sizes[ALL_WIDTHS[2]], "3 bits take the place of 4"


def test_a_baked_model_unpacks_nothing(tmp_path: Path) -> None:
    styled(
        plain_linear(tmp_path),
        all_rows(AffineFormat(bits=3, group_size=64)),
        OnnxBackend(style="baked", accuracy_level=0),
        tmp_path / "out",
    )
    written = onnx.load_model(str(tmp_path / "out" / "model.onnx"))
    assert {node.op_type for function in written.functions for node in function.node} == {"Cast", "MatMulNBits"}


@pytest.mark.parametrize("source", [convolution, recurrent], ids=lambda source: source.__name__)
def test_what_has_no_container_stays_in_floats_when_baked(source: Callable[..., Source], tmp_path: Path) -> None:
    model, feeds = source(tmp_path)
    footprint = OnnxBackend(style="baked").footprint(model, ALL_WIDTHS)
    assert all([str(format) for format in site.formats] == ["fp16"] for site in footprint.sites.values())
    styled((model, feeds), all_rows(FloatFormat(dtype="fp16")), OnnxBackend(style="baked"), tmp_path / "out")


def test_entropy_codes_are_refused_where_nothing_is_unpacked(tmp_path: Path) -> None:
    model, _ = plain_linear(tmp_path)
    for style in ("qdq", "baked"):
        backend = OnnxBackend(style=style)  # pyright: ignore[reportArgumentType]
        assert backend.entropy_code(model, asked=False) is None
        with pytest.raises(BackendError, match="coding=entropy"):
            backend.entropy_code(model, asked=True)
