"""Codes stored by their entropy, in Rice codes (see `quant/rice.py`), and the calls that unpack them at load.

The ones of the unary parts are found by TopK, which the runtime folds away like everything else that unpacks. Bits
and low parts are stored as codes of so many bits are (see `layout.py`).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from guidedq.quant.exponents import FRACTIONS, PARTS, POWERS
from guidedq.quant.rice import folded, rice_parameter, unary, unfolding

from .layout import BYTE_BITS, Stream
from .patch import Patch
from .settings import Settings
from .streams import CodedRows, part_constants, store_parts

COUNTED_PARAMETER = 1
"""Low bits while bytes are only counted: with none a few bytes less would be needed."""


def store_codes(patch: Patch, rows: CodedRows, columns: int, settings: Settings) -> str:
    """Store the codes of all rows; gives the name of the flat codes, one a byte."""
    weights = rows.count * columns
    low, numbers = COUNTED_PARAMETER, torch.zeros(0, dtype=torch.int64)
    unary_bytes = rows.count * rows.format.code_bytes(columns) - _plane_bytes(weights, low)
    if rows.segment is not None:
        flat = torch.empty_like(rows.segment.codes)
        flat[rows.segment.rows] = rows.segment.codes
        low, numbers = rice_parameter(flat), folded(flat.flatten())
        unary_bytes = _plane_bytes(int((numbers >> low).sum()) + weights, 1)
    bits = patch.store(np.uint8, (max(unary_bytes, 1),), lambda: _bit_planes(unary(numbers >> low).numpy()))
    count = patch.store(np.int64, (1,), lambda: np.array([weights], dtype=np.int64), per_row=False)
    inputs = [bits, *part_constants(patch, BYTE_BITS, 1, settings), count]
    table = patch.constant(unfolding().numpy())
    if not low:
        return patch.call("Unary", [*inputs, table])
    stream = Stream(bits=low, container=BYTE_BITS, columns=weights, zero_points=0)
    none = np.zeros((1, 0), dtype=np.uint8)
    lows = store_parts(patch, stream, 1, lambda: stream.pack(_lows(numbers, low)[None], none), settings)
    factor = patch.constant(np.array(2**low, dtype=np.int32))
    return patch.call("Rice", [*inputs, table, lows, factor])


def store_exponents(patch: Patch, rows: CodedRows) -> str:
    """Store the rows' scales; gives the name of the float32 scales `[n, 1]`."""

    @cache
    def exponents() -> np.ndarray:
        assert rows.segment is not None
        ordered = torch.empty_like(rows.segment.row_exponents)
        ordered[rows.segment.rows] = rows.segment.row_exponents
        return ordered.numpy()[:, None]

    stored = patch.store(np.uint8, (rows.count, 1), exponents)
    shift = (PARTS - 1).bit_length()
    shifts = [patch.constant(np.array(bits, dtype=np.uint8)) for bits in (shift, BYTE_BITS - shift)]
    return patch.call("Powers", [stored, *shifts, patch.constant(FRACTIONS.numpy()), patch.constant(POWERS.numpy())])


def _plane_bytes(values: int, width: int) -> int:
    return -(-values * width // BYTE_BITS)


def _lows(numbers: torch.Tensor, low: int) -> np.ndarray:
    return (numbers & (2**low - 1)).numpy().astype(np.uint8)


def _bit_planes(bits: np.ndarray) -> np.ndarray:
    stream = Stream(bits=1, container=BYTE_BITS, columns=len(bits), zero_points=0)
    return stream.pack(bits[None], bits[None, :0])[0]
