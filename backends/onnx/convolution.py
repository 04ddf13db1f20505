"""Sites whose operators stay as they are: quantized in the file, dequantized once while the model is loaded.

Convolutions are such sites (the runtime has no kernel for them at low bits), and so is every weight that some node
reads in a way that no quantized operator does. What the nodes read has the weight's own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from onnx import TensorProto, helper
from torch import Tensor

from guidedq.artifacts.quantized_weight import FloatSegment
from guidedq.ir.graph import Site
from guidedq.quant.formats import ENTROPY_ZERO, FloatFormat

from .coded import store_codes, store_exponents
from .layout import BYTE_BITS
from .patch import Patch, Step
from .settings import Settings
from .skeleton import Slot
from .streams import AffineRows, CodedRows, FloatRows, StoredRows, store_order, store_scales, store_stream

FLOAT_TYPES: dict[str, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp32": np.float32}


def write_dense(patch: Patch, slot: Slot, segments: Sequence[StoredRows], settings: Settings) -> None:
    """Store the weight and restore it, in float, under its own name."""
    site = slot.site
    shape = list(site.row_shape)
    to_do = turned_back(patch, site)
    if slot.element_type != TensorProto.FLOAT:
        to_do.append(("Cast", [], {"to": slot.element_type}))
    if len(segments) == 1:
        rows, output = segments[0], None if to_do else slot.name
        assert not isinstance(rows, FloatRows)
        value = (
            _write_coded(patch, slot, rows, settings, shape=shape, output=output)
            if isinstance(rows, CodedRows)
            else _write_affine(patch, slot, rows, settings, shape=shape, output=output)
        )
    else:
        parts = [_write_rows(patch, slot, rows, settings) for rows in segments]
        order = store_order(patch, segments, site.rows)
        value = patch.node("Concat", parts, axis=0)
        flat = len(shape) == 2
        value = patch.node("Gather", [value, order], slot.name if flat and not to_do else None, axis=0)
        if not flat:
            target = patch.integers(*shape)
            value = patch.node("Reshape", [value, target], None if to_do else slot.name)
    patch.chain(value, to_do, slot.name)


def turned_back(patch: Patch, site: Site) -> list[Step]:
    """What makes the stored weight of a value in `row_shape`: one after another."""
    if site.turned_axes is None:
        return []
    first, second = site.turned_axes
    order = list(range(len(site.row_shape)))
    order[first], order[second] = second, first
    steps: list[Step] = [("Transpose", [], {"perm": order})]
    if len(order) != len(site.shape):
        steps.append(("Reshape", [patch.integers(*site.shape)], {}))
    return steps


def write_float(patch: Patch, slot: Slot, rows: FloatRows) -> None:
    """Store the whole weight in floating point, cast to what the nodes read if need be."""
    dtype = np.dtype(FLOAT_TYPES[rows.format.dtype])
    same = helper.np_dtype_to_tensor_dtype(dtype) == slot.element_type

    def values() -> np.ndarray:
        assert rows.segment is not None
        return array_of(slot.site.stored(ordered(rows.segment)), rows.format)

    stored = patch.store(dtype, slot.site.shape, values, slot.name if same else None)
    if not same:
        patch.node("Cast", [stored], slot.name, to=slot.element_type)


def ordered(segment: FloatSegment) -> Tensor:
    """The values of a segment that holds all rows, in the order of the rows."""
    values = torch.empty_like(segment.values)
    values[segment.rows] = segment.values
    return values


def array_of(values: Tensor, format: FloatFormat) -> np.ndarray:
    """The tensor as an array of the format's type; bfloat16 has no numpy type of its own, so its bits are taken."""
    if format.dtype == "bf16":
        return values.to(torch.bfloat16).contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return values.numpy().astype(FLOAT_TYPES[format.dtype])


def _write_coded(
    patch: Patch, slot: Slot, rows: CodedRows, settings: Settings, *, shape: list[int], output: str | None
) -> str:
    columns = slot.site.columns
    scales = store_exponents(patch, rows)
    codes = store_codes(patch, rows, columns, settings)
    unpacked = patch.call("RowsS", [codes, scales], K=columns, b=BYTE_BITS)
    zero_points = patch.constant(np.array([[ENTROPY_ZERO]], dtype=np.uint8))
    return patch.call("Dense", [unpacked, zero_points, scales], output, K=columns, G=columns, d=shape)


def _write_rows(patch: Patch, slot: Slot, rows: StoredRows, settings: Settings) -> str:
    assert not isinstance(rows, CodedRows), "coded rows are never mixed"
    if isinstance(rows, AffineRows):
        return _write_affine(patch, slot, rows, settings, shape=[-1, slot.site.columns], output=None)

    def values() -> np.ndarray:
        assert rows.segment is not None
        return array_of(rows.segment.values, rows.format)

    stored = patch.store(FLOAT_TYPES[rows.format.dtype], (rows.count, slot.site.columns), values)
    return patch.node("Cast", [stored], to=TensorProto.FLOAT)


def _write_affine(
    patch: Patch, slot: Slot, rows: AffineRows, settings: Settings, *, shape: list[int], output: str | None
) -> str:
    columns = slot.site.columns
    stream = store_stream(patch, rows, BYTE_BITS, columns, settings)
    scales = store_scales(patch, rows, columns)
    if rows.format.symmetric:
        unpacked = patch.call("RowsS", [stream, scales], K=columns, b=BYTE_BITS)
        zero_points = patch.constant(np.array([[2 ** (rows.format.bits - 1)]], dtype=np.uint8))
    else:
        unpacked, zero_points = patch.call_for(2, "Rows", [stream, scales], K=columns, b=BYTE_BITS)
    group = rows.format.columns_per_group(columns)
    return patch.call("Dense", [unpacked, zero_points, scales], output, K=columns, G=group, d=shape)
