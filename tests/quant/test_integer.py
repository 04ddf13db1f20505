"""Grids of eight bits for computing: what ONNX Runtime's own operators make of the same numbers."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from guidedq.errors import CalibrationError
from guidedq.quant.integer import (
    REDUCED_CODE,
    WHOLE_CODE,
    IntegerGrid,
    integer_grid,
    round_dynamically,
    round_rows,
    round_to_grid,
)


def test_zero_is_on_every_grid_and_the_ends_are_held():
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)):
        grid = integer_grid(low, high)
        assert float(round_to_grid(torch.zeros(1), grid)) == 0.0
        assert grid.low <= min(low, 0) + grid.scale
        assert grid.high >= max(high, 0) - grid.scale


def test_a_symmetric_grid_has_its_zero_in_the_middle_or_at_the_bottom_where_nothing_is_negative():
    assert integer_grid(-1.0, 3.0, symmetric=True) == IntegerGrid(scale=float(np.float32(3 / 127)), zero_point=128)
    assert integer_grid(0.0, 3.0, symmetric=True) == integer_grid(0.0, 3.0)


def test_what_is_no_grid_is_refused():
    for scale, zero_point in ((0.0, 0), (float("nan"), 0), (1.0, 256)):
        with pytest.raises(CalibrationError, match="no grid"):
            IntegerGrid(scale=scale, zero_point=zero_point)


@pytest.mark.parametrize("dynamic", [False, True])
def test_rounding_is_what_the_operators_do(dynamic):
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 2 + 0.3
    grid = integer_grid(-1.5, 4.0)
    quantize = (
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
        if dynamic
        else helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    )
    nodes = [quantize, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    stored = [from_array(np.float32(grid.scale), "s"), from_array(np.uint8(grid.zero_point), "z")]
    found = torch.from_numpy(_run(nodes, [] if dynamic else stored, {"x": values.numpy()}))
    expected = round_dynamically(values) if dynamic else round_to_grid(values, grid)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("largest_code", [REDUCED_CODE, WHOLE_CODE])
def test_rows_are_rounded_each_by_its_own_scale_along_either_axis(largest_code):
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    weight[2] = 0
    rounded = round_rows(weight, 0, largest_code)
    for row, before in zip(rounded, weight, strict=True):
        scale = float(before.abs().max()) / largest_code
        codes = [round(float(value) / scale) if scale else 0 for value in before]
        torch.testing.assert_close(row, torch.tensor(codes) * scale, rtol=1e-6, atol=0.0)
    assert torch.equal(round_rows(weight.t(), 1, largest_code), rounded.t())


def test_two_products_leave_sixteen_bits_in_the_whole_range_alone():
    assert 2 * 255 * REDUCED_CODE <= np.iinfo(np.int16).max < 2 * 255 * WHOLE_CODE


def _run(nodes, stored, feeds):
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape) for name, values in feeds.items()]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", given, made, stored), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
