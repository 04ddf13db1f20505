"""Which formats a site can be stored in, and for how many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from guidedq.artifacts.footprint import SiteFootprint, code_bytes_of
from guidedq.errors import BackendError
from guidedq.ir.graph import Site
from guidedq.quant.formats import AffineFormat, EntropyFormat, FloatFormat, Format, RoundedFormat
from guidedq.quant.grid import LARGEST_SCALE, can_represent
from guidedq.quant.nested import NestedFormat
from guidedq.quant.packing import (
    INDEX_BITS,
    MAXIMUM_SEGMENTS,
    OUTLIER_COLUMNS,
    PREFIX_BYTES,
    SEGMENT_HEADER,
    STREAM_HEADER,
    columns_bytes,
)

from .contents import stored_dtype

FLOAT_NAMES: dict[torch.dtype, Literal["fp16", "bf16"]] = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def site_footprint(site: Site, values: Tensor, formats: Sequence[RoundedFormat]) -> SiteFootprint:
    """What of `formats` can hold the weight `values`, besides the 16-bit float that loses least.

    Left out are formats as large as that float, formats that differ from an earlier one in name only (groups no
    shorter than a row), more outliers than a row has columns, and those whose scale, for the site's whole range, is no
    normal fp16 number: they would clip the weight or waste their bits.

    Raises:
        BackendError: no 16-bit float can hold the weight.
    """
    dtype = stored_dtype(values)
    if dtype not in FLOAT_NAMES:
        raise BackendError(
            f"{site.name}: its weights are not finite numbers that 16 bits can hold. Mend the checkpoint."
        )
    whole = FloatFormat(dtype=FLOAT_NAMES[dtype])
    low, high = (bound.float() for bound in values.detach().aminmax())
    found: dict[object, Format] = {}
    for format in formats:
        if not can_represent(format, low, high):
            continue
        if isinstance(format, EntropyFormat):
            found[format] = format
            continue
        smaller = format.row_bytes(site.columns) < whole.row_bytes(site.columns)
        if smaller and _can_hold_outliers(format, site.columns, low, high):
            key = (format.bits, format.columns_per_group(site.columns), format.symmetric, format.outliers)
            found.setdefault(key, format)
    held = (*found.values(), whole)
    entropy = any(isinstance(format, EntropyFormat) for format in held)
    return SiteFootprint(
        formats=held,
        row_bytes=tuple(format.row_bytes(site.columns) for format in held),
        segment_bytes=tuple(
            SEGMENT_HEADER.size + (STREAM_HEADER.size if isinstance(format, EntropyFormat) else 0) for format in held
        ),
        site_bytes=PREFIX_BYTES + (columns_bytes(site.columns) if entropy else 0),
        mixed_row_bits=INDEX_BITS,
        segments=MAXIMUM_SEGMENTS,
        code_bytes=code_bytes_of(held, site.columns),
    )


def nested_site_footprint(site: Site, values: Tensor, format: NestedFormat) -> SiteFootprint:
    """What the weight `values` takes as a nested one, or as the 16-bit float that loses least where that is smaller.

    Raises:
        BackendError: no 16-bit float can hold the weight.
    """
    widest = AffineFormat(bits=format.widest, group_size=format.group_size)
    plain = site_footprint(site, values, [widest])
    held = plain.formats[-1] if widest not in plain.formats else format
    refit = format.refit_bytes(site.rows) if held is format else 0
    return SiteFootprint(
        formats=(held,),
        row_bytes=(held.row_bytes(site.columns),),
        segment_bytes=(SEGMENT_HEADER.size + refit,),
        site_bytes=plain.site_bytes,
    )


def _can_hold_outliers(format: AffineFormat, columns: int, low: Tensor, high: Tensor) -> bool:
    largest = max(-float(low), float(high))
    held = format.outliers < columns <= OUTLIER_COLUMNS and largest <= LARGEST_SCALE
    return not format.outliers or held
