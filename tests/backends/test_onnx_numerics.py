"""Whatever is stored, ONNX Runtime's output is that of the user's graph with the dequantized weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx_models import onnx_model, quantized, reference, relative_error

from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.backends.onnx.runtime import loaded_by_runtime
from guidedq.ir.graph import Site, Storage, Use, UseKind
from guidedq.ir.model import InputSpec, Model
from guidedq.quant.formats import AffineFormat, FloatFormat, Format

TOLERANCE = 1e-5
"""Sums of some hundred float32 products in another order; a wrong code or scale is off by far more."""
Feeds = dict[str, np.ndarray]
Source = tuple[Model, Feeds]


def site(name: str, shape: tuple[int, ...], *kinds: UseKind, **options: Any) -> Site:
    uses = tuple(Use(operator=f"{name}{index}", kind=kind) for index, kind in enumerate(kinds))
    return Site(name=name, shape=shape, uses=uses, **options)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dense_input(columns: int, rank: int = 3) -> InputSpec:
    return InputSpec(name="x", dtype=torch.float32, shape=(*(None,) * (rank - 1), columns))


def transposed_linear(folder: Path, rows: int = 24, columns: int = 172, opset: int = 21) -> Source:
    nodes = [helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    weights = {"w": normal(rows, columns)}
    sites = [site("w", (rows, columns), UseKind.LINEAR)]
    model = onnx_model(folder, nodes, weights, sites, [dense_input(columns)], opset=opset)
    return model, {"x": normal(2, 3, columns, seed=1)}


def plain_linear(folder: Path, rows: int = 24, columns: int = 172, opset: int = 21) -> Source:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    weights = {"w": normal(columns, rows)}
    sites = [site("w", (columns, rows), UseKind.LINEAR, storage=Storage.IN_OUT)]
    model = onnx_model(folder, nodes, weights, sites, [dense_input(columns)], opset=opset)
    return model, {"x": normal(2, 3, columns, seed=1)}


def gemm(folder: Path, rows: int = 12, columns: int = 64, opset: int = 21, **options: Any) -> Source:
    nodes = [helper.make_node("Gemm", ["x", "w", "c"], ["y"], **options)]
    out_in = bool(options.get("transB"))
    shape = (rows, columns) if out_in else (columns, rows)
    storage = Storage.OUT_IN if out_in else Storage.IN_OUT
    spec = (
        InputSpec(name="x", dtype=torch.float32, shape=(columns, None))
        if options.get("transA")
        else dense_input(columns, 2)
    )
    weights = {"w": normal(*shape), "c": normal(rows, seed=2)}
    sites = [site("w", shape, UseKind.LINEAR, storage=storage)]
    model = onnx_model(folder, nodes, weights, sites, [spec], opset=opset, output_rank=2)
    values = normal(5, columns, seed=1)
    return model, {"x": np.ascontiguousarray(values.T) if options.get("transA") else values}


def embedding(folder: Path, rows: int = 30, columns: int = 172, opset: int = 21) -> Source:
    nodes = [helper.make_node("Gather", ["w", "i"], ["y"])]
    sites = [site("w", (rows, columns), UseKind.EMBEDDING)]
    spec = InputSpec(name="i", dtype=torch.int64, shape=(None, None))
    model = onnx_model(folder, nodes, {"w": normal(rows, columns)}, sites, [spec], opset=opset)
    return model, {"i": np.random.default_rng(3).integers(0, rows, (2, 7))}


def tied(folder: Path, rows: int = 30, columns: int = 172, opset: int = 21) -> Source:
    nodes = [
        helper.make_node("Gather", ["w", "i"], ["e"], name="look up"),
        helper.make_node("Identity", ["w"], ["same"]),
        helper.make_node("Transpose", ["same"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["e", "t"], ["y"]),
    ]
    sites = [site("w", (rows, columns), UseKind.EMBEDDING, UseKind.LINEAR)]
    spec = InputSpec(name="i", dtype=torch.int64, shape=(None, None))
    model = onnx_model(folder, nodes, {"w": normal(rows, columns)}, sites, [spec], opset=opset)
    return model, {"i": np.random.default_rng(3).integers(0, rows, (2, 7))}


def read_twice(folder: Path, rows: int = 20, columns: int = 64, opset: int = 21) -> Source:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    sites = [site("w", (columns, rows), UseKind.LINEAR, UseKind.LINEAR, storage=Storage.IN_OUT)]
    model = onnx_model(folder, nodes, {"w": normal(columns, rows)}, sites, [dense_input(columns)], opset=opset)
    return model, {"x": normal(2, 3, columns, seed=1)}


def read_oddly(folder: Path, rows: int = 20, columns: int = 64, opset: int = 21) -> Source:
    """A product and something that no quantized operator does read the same weight."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("ReduceSum", ["w"], ["b"], keepdims=0),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    sites = [site("w", (columns, rows), UseKind.LINEAR, storage=Storage.IN_OUT)]
    model = onnx_model(folder, nodes, {"w": normal(columns, rows)}, sites, [dense_input(columns)], opset=opset)
    return model, {"x": normal(2, 3, columns, seed=1)}


def convolution(folder: Path, groups: int = 1, opset: int = 21) -> Source:
    nodes = [helper.make_node("Conv", ["x", "w", "c"], ["y"], group=groups, pads=[1, 1, 1, 1])]
    shape = (8, 6 // groups, 3, 3)
    sites = [site("w", shape, UseKind.CONVOLUTION, input_groups=groups)]
    spec = InputSpec(name="x", dtype=torch.float32, shape=(None, 6, None, None))
    weights = {"w": normal(*shape), "c": normal(8, seed=2)}
    model = onnx_model(folder, nodes, weights, sites, [spec], opset=opset, output_rank=4)
    return model, {"x": normal(2, 6, 5, 4, seed=1)}


def upsampling(folder: Path, groups: int = 2, opset: int = 21) -> Source:
    """A transposed convolution, whose outputs are in the weight's second axis."""
    nodes = [helper.make_node("ConvTranspose", ["x", "w", "c"], ["y"], group=groups, strides=[2, 2])]
    shape = (6, 8 // groups, 3, 2)
    sites = [site("w", shape, UseKind.CONVOLUTION, input_groups=groups, storage=Storage.IN_OUT_KERNEL)]
    spec = InputSpec(name="x", dtype=torch.float32, shape=(None, 6, None, None))
    weights = {"w": normal(*shape), "c": normal(8, seed=2)}
    model = onnx_model(folder, nodes, weights, sites, [spec], opset=opset, output_rank=4)
    return model, {"x": normal(2, 6, 5, 4, seed=1)}


def recurrent(folder: Path, directions: int = 2, opset: int = 21) -> Source:
    """An LSTM, both of whose weights are stored; its output has an axis for the directions."""
    columns, hidden = 24, 20
    name = "bidirectional" if directions == 2 else "reverse"
    nodes = [helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=hidden, direction=name)]
    shapes = {"w": (directions, 4 * hidden, columns), "r": (directions, 4 * hidden, hidden)}
    weights = {key: normal(*shape, seed=len(key) + shape[2]) / 4 for key, shape in shapes.items()}
    weights["b"] = normal(directions, 8 * hidden, seed=2)
    sites = [site(key, shape, UseKind.RECURRENT, storage=Storage.STACKED) for key, shape in shapes.items()]
    spec = dense_input(columns)
    model = onnx_model(folder, nodes, weights, sites, [spec], opset=opset, output_rank=4)
    return model, {"x": normal(7, 3, columns, seed=1)}


def check(source: Source, choose: Callable[[Site], Sequence[Format]], folder: Path, level: int = 0) -> onnx.ModelProto:
    """Write, run, compare; gives what the runtime made of it."""
    model, feeds = source
    weights = quantized(model, choose)
    out = folder / "out"
    out.mkdir()
    backend = OnnxBackend(accuracy_level=level)
    emission = backend.emit(model, weights, out)
    assert not any("not folded" in notice for notice in emission.notices)
    found = backend.load(out).run(None, feeds)[0]
    assert relative_error(found, reference(model, weights, feeds)) < TOLERANCE
    return loaded_by_runtime(emission.weights_file)


def all_rows(format: Format) -> Callable[[Site], list[Format]]:
    return lambda site: [format] * site.rows


def in_turn(*formats: Format) -> Callable[[Site], list[Format]]:
    return lambda site: [formats[(row * row + row // 3) % len(formats)] for row in range(site.rows)]


def operators(loaded: onnx.ModelProto) -> list[str]:
    """What is run; the layout that some processors want for convolutions is left out."""
    return [node.op_type for node in loaded.graph.node if not node.op_type.startswith("Reorder")]


WIDTHS = [AffineFormat(bits=bits, group_size=64, symmetric=bits in (3, 8)) for bits in range(2, 9)]
OLD = [AffineFormat(bits=3, group_size=64), AffineFormat(bits=7, group_size=32, symmetric=True)]
CASES = [(format, 21) for format in WIDTHS] + [(format, 13) for format in OLD] + [(WIDTHS[2], 18), (WIDTHS[2], 23)]


@pytest.mark.parametrize(("format", "opset"), CASES, ids=str)
def test_every_width_runs_as_one_matrix_product(format: AffineFormat, opset: int, tmp_path: Path) -> None:
    loaded = check(transposed_linear(tmp_path, opset=opset), all_rows(format), tmp_path)
    assert operators(loaded) == ["MatMulNBits"]


@pytest.mark.parametrize("format", WIDTHS, ids=str)
def test_every_width_runs_as_one_look_up(format: AffineFormat, tmp_path: Path) -> None:
    loaded = check(embedding(tmp_path), all_rows(format), tmp_path)
    assert operators(loaded) == ["GatherBlockQuantized"]


@pytest.mark.parametrize(("format", "opset"), CASES, ids=str)
def test_a_tied_weight_of_every_width_is_held_once(format: AffineFormat, opset: int, tmp_path: Path) -> None:
    loaded = check(tied(tmp_path, opset=opset), all_rows(format), tmp_path)
    position = {"MatMulNBits": 1, "GatherBlockQuantized": 0}
    codes = [node.input[position[node.op_type]] for node in loaded.graph.node if node.op_type in position]
    assert len(codes) == 2 and len(set(codes)) == 1


@pytest.mark.parametrize(
    ("bits", "group_size", "opset"), [(3, 0, 21), (4, 16, 21), (8, 5, 21), (5, 64, 13), (6, 16, 13)]
)
def test_convolutions_take_any_group_size(bits: int, group_size: int, opset: int, tmp_path: Path) -> None:
    format = AffineFormat(bits=bits, group_size=group_size, symmetric=group_size == 5)
    assert operators(check(convolution(tmp_path, opset=opset), all_rows(format), tmp_path)) == ["Conv"]


MIXTURES: list[tuple[Format, ...]] = [
    (AffineFormat(bits=2, group_size=64), AffineFormat(bits=3, group_size=64)),
    (AffineFormat(bits=3, group_size=32), AffineFormat(bits=4, group_size=128), AffineFormat(bits=2, group_size=64)),
    (AffineFormat(bits=7, group_size=128), AffineFormat(bits=3, group_size=16), AffineFormat(bits=5, group_size=64)),
    (AffineFormat(bits=4, group_size=32, symmetric=True), AffineFormat(bits=3, group_size=64)),
    (AffineFormat(bits=8, group_size=64, symmetric=True), AffineFormat(bits=6, group_size=32, symmetric=True)),
    (AffineFormat(bits=4, group_size=64), FloatFormat(dtype="fp16")),
]
SOURCES: list[Callable[..., Source]] = [
    transposed_linear,
    embedding,
    tied,
    convolution,
    upsampling,
    read_oddly,
    recurrent,
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
@pytest.mark.parametrize("number", range(len(MIXTURES)))
def test_rows_of_several_formats_come_back_in_order(number: int, source: Callable[..., Source], tmp_path: Path) -> None:
    opset = 13 if (number + SOURCES.index(source)) % 3 == 0 else 21
    check(source(tmp_path, opset=opset), in_turn(*MIXTURES[number]), tmp_path)


@pytest.mark.parametrize("columns", [8, 17, 64, 172])
def test_one_group_a_row_is_held_whatever_the_width_of_the_row(columns: int, tmp_path: Path) -> None:
    check(plain_linear(tmp_path, columns=columns), all_rows(AffineFormat(bits=3, group_size=0)), tmp_path)


@pytest.mark.parametrize("columns", [8, 17, 64])
def test_a_matrix_of_one_row_is_held(columns: int, tmp_path: Path) -> None:
    source = plain_linear(tmp_path, rows=1, columns=columns)
    check(source, all_rows(AffineFormat(bits=5, group_size=16)), tmp_path)


@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (4, True), (8, False)])
@pytest.mark.parametrize("source", [transposed_linear, embedding, tied], ids=lambda source: source.__name__)
def test_large_weights_whose_codes_fill_the_container_need_no_unpacking(
    source: Callable[..., Source], symmetric: bool, bits: int, tmp_path: Path
) -> None:
    format = AffineFormat(bits=bits, group_size=32, symmetric=symmetric)
    check(source(tmp_path, rows=300, columns=256), all_rows(format), tmp_path, level=0)


GEMMS: list[dict[str, Any]] = [
    {},
    {"transB": 1},
    {"transA": 1},
    {"transB": 1, "alpha": 0.5, "beta": 2.0},
    {"alpha": -1.5},
]


@pytest.mark.parametrize("options", GEMMS, ids=str)
def test_what_a_gemm_does_besides_multiplying_is_kept(options: dict[str, Any], tmp_path: Path) -> None:
    loaded = check(gemm(tmp_path, **options), all_rows(AffineFormat(bits=3, group_size=32)), tmp_path)
    assert "MatMulNBits" in operators(loaded)


def test_a_weight_read_by_two_products_is_stored_once(tmp_path: Path) -> None:
    loaded = check(read_twice(tmp_path), all_rows(AffineFormat(bits=3, group_size=32)), tmp_path)
    assert operators(loaded).count("MatMulNBits") == 2


def test_a_weight_read_in_a_way_that_no_quantized_operator_has_is_restored_at_load(tmp_path: Path) -> None:
    loaded = check(read_oddly(tmp_path), all_rows(AffineFormat(bits=3, group_size=48)), tmp_path)
    assert "MatMulNBits" not in operators(loaded)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("source", [plain_linear, embedding, convolution], ids=lambda source: source.__name__)
def test_sites_left_in_floating_point_keep_their_operators(
    source: Callable[..., Source], dtype: Any, tmp_path: Path
) -> None:
    loaded = check(source(tmp_path), all_rows(FloatFormat(dtype=dtype)), tmp_path)
    assert operators(loaded) in (["MatMul"], ["Gather"], ["Conv"])


def test_grouped_convolutions_are_held(tmp_path: Path) -> None:
    check(convolution(tmp_path, groups=2), all_rows(AffineFormat(bits=3, group_size=16)), tmp_path)


def test_half_precision_graphs_stay_in_half_precision(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    sites = [site("w", (64, 20), UseKind.LINEAR, storage=Storage.IN_OUT)]
    spec = InputSpec(name="x", dtype=torch.float16, shape=(None, None, 64))
    weights = {"w": normal(64, 20).astype(np.float16)}
    model = onnx_model(tmp_path, nodes, weights, sites, [spec], element=TensorProto.FLOAT16)
    stored = quantized(model, all_rows(AffineFormat(bits=3, group_size=32)))
    (tmp_path / "out").mkdir()
    backend = OnnxBackend(accuracy_level=0)
    backend.emit(model, stored, tmp_path / "out")
    feeds = {"x": normal(2, 3, 64, seed=1).astype(np.float16)}
    found = backend.load(tmp_path / "out").run(None, feeds)[0]
    assert found.dtype == np.float16
    assert relative_error(found, reference(model, stored, feeds)) < 2e-3


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_the_rounding_of_activations_is_that_of_the_runtime(bits: int, tmp_path: Path) -> None:
    from guidedq.ir.activation_rounding import round_activations

    model, feeds = plain_linear(tmp_path, columns=172)
    weights = quantized(model, all_rows(AffineFormat(bits=bits, group_size=64)))
    (tmp_path / "out").mkdir()
    backend = OnnxBackend(accuracy_level=4)
    backend.emit(model, weights, tmp_path / "out")
    found = backend.load(tmp_path / "out").run(None, feeds)[0]
    rounded = {"x": round_activations(torch.from_numpy(feeds["x"]), 64).numpy()}
    assert relative_error(found, reference(model, weights, rounded)) < TOLERANCE
    assert relative_error(found, reference(model, weights, feeds)) > 1e-4
