"""Which formats are worth offering for a weight, whatever the graph says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from guidedq.ir.graph import Site
from guidedq.quant.formats import EntropyFormat, FloatFormat, Format, RoundedFormat
from guidedq.quant.grid import LARGEST_SCALE, can_represent


def offered_formats(
    site: Site, matrix: Tensor, formats: Sequence[RoundedFormat], left: Literal["fp16", "bf16"] = "fp16"
) -> tuple[Format, ...]:
    """Those of `formats` that could hold the weight `[out, in]`, and the float in which it is left alone, last.

    Left out are formats as large as the float, formats that differ from an earlier one in name only (groups no shorter
    than a row), and those whose scale, for the whole range, is no normal fp16 number: they would clip the weight or
    waste their bits. The float is that of `left`, or fp32 if some weight is too large for fp16.
    """
    low, high = matrix.aminmax()
    whole = FloatFormat(dtype=left if max(-float(low), float(high)) <= LARGEST_SCALE else "fp32")
    found: dict[object, Format] = {}
    for format in formats:
        if not can_represent(format, low, high):
            continue
        if isinstance(format, EntropyFormat):
            found[format] = format
        elif format.row_bytes(site.columns) < whole.row_bytes(site.columns) and not format.outliers:
            found.setdefault((format.bits, format.columns_per_group(site.columns), format.symmetric), format)
    return (*found.values(), whole)
