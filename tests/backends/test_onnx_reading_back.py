"""The report says which operator ONNX Runtime runs for each site, as read back from the graph that it runs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx_models import onnx_model, quantized
from test_onnx_bytes import network
from test_onnx_numerics import Source, all_rows, convolution, embedding, normal, plain_linear, site, tied

from guidedq.artifacts.runtime import RuntimeFacts, RuntimeNode
from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.ir.graph import UseKind
from guidedq.ir.model import InputSpec
from guidedq.quant.formats import AffineFormat, FloatFormat, Format

THREE_BITS = AffineFormat(bits=3, group_size=64)
PRODUCT = RuntimeNode(operator="MatMulNBits", weight="codes", bits=4, block_size=64, accuracy_level=4)
LOOK_UP = RuntimeNode(operator="GatherBlockQuantized", weight="codes", bits=4, block_size=64)


def facts(source: Source, format: Format, out: Path, backend: OnnxBackend | None = None) -> RuntimeFacts:
    out.mkdir()
    found = (backend or OnnxBackend()).emit(source[0], quantized(source[0], all_rows(format)), out).runtime
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("source", "format", "style", "expected"),
    [
        (plain_linear, THREE_BITS, "native", (PRODUCT,)),
        (plain_linear, THREE_BITS, "qdq", (PRODUCT,)),
        (plain_linear, THREE_BITS, "baked", (PRODUCT,)),
        (plain_linear, FloatFormat(dtype="fp16"), "native", (RuntimeNode(operator="MatMul", weight="folded"),)),
        (embedding, THREE_BITS, "native", (LOOK_UP,)),
        (embedding, THREE_BITS, "qdq", (RuntimeNode(operator="Gather", weight="each call", bits=4, block_size=64),)),
        (tied, THREE_BITS, "native", (LOOK_UP, PRODUCT)),
        (convolution, THREE_BITS, "native", (RuntimeNode(operator="Conv", weight="folded"),)),
        (convolution, FloatFormat(dtype="fp32"), "native", (RuntimeNode(operator="Conv", weight="stored"),)),
    ],
)
def test_each_site_is_told_with_its_operator(
    source: Callable[..., Source], format: Format, style: str, expected: tuple[RuntimeNode, ...], tmp_path: Path
) -> None:
    backend = OnnxBackend(style=style)  # pyright: ignore[reportArgumentType]
    assert set(facts(source(tmp_path), format, tmp_path / "out", backend).sites["w"]) == set(expected)


def test_a_convolution_is_found_though_it_is_fused_with_what_follows(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["y"]),
    ]
    sites = [site("w", (8, 6, 3, 3), UseKind.CONVOLUTION), site("v", (4, 8, 1, 1), UseKind.CONVOLUTION)]
    spec = InputSpec(name="x", dtype=torch.float32, shape=(None, 6, None, None))
    weights = {"w": normal(8, 6, 3, 3), "v": normal(4, 8, 1, 1)}
    found = facts(
        (onnx_model(tmp_path, nodes, weights, sites, [spec], output_rank=4), {}), THREE_BITS, tmp_path / "out"
    )
    assert [found.sites[name][0].operator for name in ("w", "v")] == ["FusedConv", "Conv"]


@pytest.mark.parametrize("external", [False, True])
def test_all_unpacking_nodes_are_counted_and_folded(external: bool, tmp_path: Path) -> None:
    model = network(tmp_path)
    backend = OnnxBackend(external_bytes=0 if external else 10**10)
    (tmp_path / "out").mkdir()
    emission = backend.emit(model, quantized(model, all_rows(THREE_BITS)), tmp_path / "out")
    found = emission.runtime
    assert found is not None
    assert set(found.sites) == {"e", "u", "d", "k"} and all(found.sites.values())
    unrolled = onnx.inliner.inline_local_functions(onnx.load_model(str(emission.weights_file)))
    run = [node for node in unrolled.graph.node if node.op_type in ("MatMulNBits", "GatherBlockQuantized", "Conv")]
    assert len(run) == sum(found.kinds.values())
    assert found.unpacking_nodes > 20 and found.unfolded_nodes == 0


def test_what_is_left_to_every_call_is_counted_and_told(tmp_path: Path) -> None:
    model = network(tmp_path)
    (tmp_path / "out").mkdir()
    emission = OnnxBackend(style="qdq").emit(model, quantized(model, all_rows(THREE_BITS)), tmp_path / "out")
    assert emission.runtime is not None
    states = {name: {node.weight for node in nodes} for name, nodes in emission.runtime.sites.items()}
    assert states == {"e": {"each call"}, "u": {"codes"}, "d": {"codes"}, "k": {"each call"}}
    assert emission.runtime.unfolded_nodes >= 2
    assert any("each call runs them" in notice for notice in emission.notices)


def test_dynamic_shapes_of_the_model_itself_are_not_counted(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["one", "one"], ["two"]),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "two"], ["y"]),
    ]
    others = [onnx.numpy_helper.from_array(np.ones(1, dtype=np.float32), "one")]
    spec = InputSpec(name="x", dtype=torch.float32, shape=(None, None, 64))
    sites = [site("w", (20, 64), UseKind.LINEAR)]
    nodes.insert(1, helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]))
    nodes[2] = helper.make_node("MatMul", ["x", "t"], ["a"])
    model = onnx_model(tmp_path, nodes, {"w": normal(20, 64)}, sites, [spec], others=others)
    assert facts((model, {}), FloatFormat(dtype="fp32"), tmp_path / "out").unpacking_nodes == 1
