"""The portable style: codes in ONNX's own small integers behind DequantizeLinear, for any runtime that reads QDQ.

Matrix products get their weight as `[in, out]`, which is the form that ONNX Runtime turns into MatMulNBits. All other
nodes stay as they are and read the dequantized weight under its own name.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto

from guidedq.ir.graph import Site, Storage
from guidedq.quant.formats import AffineFormat

from .convolution import turned_back
from .matmul import write_product
from .patch import Patch, Step
from .settings import Settings
from .skeleton import Slot
from .streams import AffineRows

QDQ_OPSET = 21
"""The first with 4-bit integers, and with scales for blocks."""
TWO_BIT_OPSET = 25
"""The first with 2-bit integers."""
CONTAINERS: dict[tuple[int, bool], Any] = {
    (2, False): ml_dtypes.uint2,
    (2, True): ml_dtypes.int2,
    (4, False): ml_dtypes.uint4,
    (4, True): ml_dtypes.int4,
    (8, False): np.uint8,
    (8, True): np.int8,
}
"""By bits, and whether the zero point is zero: symmetric formats are stored as signed integers without one."""


def write_qdq(patch: Patch, slot: Slot, rows: AffineRows, settings: Settings) -> bool:
    """Store the weight behind DequantizeLinear.

    Returns:
        Whether the nodes that read it are replaced; else they read the dequantized weight under its old name.
    """
    if slot.linear and not slot.gathers:
        weight = _dequantized(patch, slot, rows, settings, turned=True, output=None)
        for reader in slot.linear:
            write_product(patch, slot, reader, partial(patch.node, "MatMul"), stored=[weight])
        return True
    _write_dense(patch, slot, rows, settings)
    return False


def container_of(bits: int, opset: int) -> int:
    """Bits of the smallest integers of this version of ONNX that hold codes of so many bits."""
    if bits <= 2 and opset >= TWO_BIT_OPSET:
        return 2
    return 4 if bits <= 4 else 8


def _write_dense(patch: Patch, slot: Slot, rows: AffineRows, settings: Settings) -> None:
    site = slot.site
    to_do: list[Step] = []
    turned = site.storage is Storage.IN_OUT
    if _is_flat(site, rows.format) and len(site.shape) != 2:
        to_do.append(("Reshape", [patch.integers(*site.row_shape)], {}))
    if not turned:
        to_do.extend(turned_back(patch, site))
    if slot.element_type != settings.element_type:
        to_do.append(("Cast", [], {"to": slot.element_type}))
    value = _dequantized(patch, slot, rows, settings, turned=turned, output=None if to_do else slot.name)
    patch.chain(value, to_do, slot.name)


def _is_flat(site: Site, format: AffineFormat) -> bool:
    """Whether codes are stored as a matrix: with scales by group, and where the first axis is not that of the rows."""
    return format.groups(site.columns) > 1 or site.storage in (Storage.STACKED, Storage.IN_OUT_KERNEL)


def _dequantized(
    patch: Patch, slot: Slot, rows: AffineRows, settings: Settings, *, turned: bool, output: str | None
) -> str:
    """Store codes, scales and zero points, `[out, in]` or turned; gives the name of the float matrix."""
    format, columns = rows.format, slot.site.columns
    groups = format.groups(columns)
    container = container_of(format.bits, settings.opset)
    dtype = CONTAINERS[container, format.symmetric]
    scale_type = np.float16 if settings.element_type == TensorProto.FLOAT16 else np.float32

    def laid(values: np.ndarray, dtype: Any) -> np.ndarray:
        return np.ascontiguousarray(values.T if turned else values).astype(dtype)

    def codes() -> np.ndarray:
        middle = 2 ** (format.bits - 1) if format.symmetric else 0
        return laid(rows.codes.astype(np.int16) - middle, dtype).reshape(whole)

    def by_group(values: np.ndarray, dtype: Any) -> np.ndarray:
        return laid(values, dtype) if groups > 1 else values[:, 0].astype(dtype)

    along = (lambda count: (count, rows.count)) if turned else (lambda count: (rows.count, count))
    shape = along(groups) if groups > 1 else (rows.count,)
    whole = along(columns) if turned or _is_flat(slot.site, format) else (rows.count, *slot.site.shape[1:])
    inputs = [
        patch.store(dtype, whole, codes),
        patch.store(scale_type, shape, lambda: by_group(rows.scales, scale_type)),
    ]
    if not format.symmetric:
        inputs.append(patch.store(dtype, shape, lambda: by_group(rows.zero_points, dtype)))
    in_axis = 0 if turned else 1
    options = {"axis": in_axis, "block_size": format.group_size} if groups > 1 else {"axis": 1 - in_axis}
    return patch.node("DequantizeLinear", inputs, output, **options)
