"""Rows hidden in the spare bits of others come back, by the functions that stand in the file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx_models import counted_bytes, quantized
from test_onnx_numerics import Source, all_rows, check, embedding, operators, tied, transposed_linear

from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.backends.onnx.layout import container_bytes
from guidedq.backends.onnx.spare_bits import ODD_WIDTHS, function_name, hide, parts_of_all, pieces
from guidedq.backends.onnx.unpacking import library
from guidedq.quant.formats import AffineFormat


@pytest.mark.parametrize(("bits", "container"), ODD_WIDTHS)
def test_the_function_gives_back_all_rows_in_order(bits: int, container: int) -> None:
    codes = np.random.default_rng(0).integers(0, 2**bits, (3 * parts_of_all(bits, container), 10), dtype=np.uint8)
    rows = container_bytes(codes, container)
    hidden = hide(rows, bits, container)
    assert hidden.size * container == rows.size * bits
    functions = library([function_name(bits)], opset=21, element_type=1, accuracy_level=0)
    node = helper.make_node(function_name(bits), ["t"], ["u"], domain="gq")
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, ["n", "k"]) for name in ("t", "u")]
    model = helper.make_model(
        helper.make_graph([node], "g", ends[:1], ends[1:]),
        functions=list(functions),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("gq", 1)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert (session.run(None, {"t": hidden})[0] == rows).all()


@pytest.mark.parametrize(("bits", "container"), ODD_WIDTHS)
def test_every_bit_of_the_hidden_rows_has_one_place_of_its_own(bits: int, container: int) -> None:
    found = [(p.hidden, p.target + k) for p in pieces(bits, container) for k in range(p.length)]
    places = [(p.row, p.source + k) for p in pieces(bits, container) for k in range(p.length)]
    hidden = parts_of_all(bits, container) * (container - bits) // container
    assert sorted(found) == [(part, bit) for part in range(hidden) for bit in range(bits)]
    assert len(set(places)) == len(places) and all(bits <= bit < container for _, bit in places)


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
@pytest.mark.parametrize("source", [transposed_linear, embedding, tied], ids=lambda source: source.__name__)
def test_large_weights_of_odd_widths_run_as_others_do(source: Callable[..., Source], bits: int, tmp_path: Path) -> None:
    format = AffineFormat(bits=bits, group_size=64)
    given = source(tmp_path, rows=344, columns=192)
    loaded = check(given, all_rows(format), tmp_path)
    assert {*operators(loaded)} <= {"MatMulNBits", "GatherBlockQuantized", "Reshape"}
    written = onnx.load_model(str(tmp_path / "out" / "model.onnx"))
    assert function_name(bits) in {node.op_type for node in written.graph.node}
    backend = OnnxBackend(accuracy_level=0)
    counted = counted_bytes(backend.footprint(given[0], [format]), quantized(given[0], all_rows(format)))
    assert 0 <= counted - (tmp_path / "out" / "model.onnx").stat().st_size < 200


def test_rows_that_do_not_divide_into_parts_are_stored_otherwise(tmp_path: Path) -> None:
    check(transposed_linear(tmp_path, rows=345, columns=192), all_rows(AffineFormat(bits=5, group_size=64)), tmp_path)
    written = onnx.load_model(str(tmp_path / "out" / "model.onnx"))
    assert "Wide5" not in {function.name for function in written.functions}
