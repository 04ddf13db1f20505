"""Rows of entropy segments as they lie in memory, and the way there and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from guidedq.artifacts.quantized_weight import EntropySegment, Segment, dequantize_codes
from guidedq.errors import FormatError
from guidedq.quant.formats import ENTROPY_STEPS_PER_BIT, EntropyFormat
from guidedq.quant.packing import MAXIMUM_SEGMENTS, NUMBER_SHIFT
from guidedq.quant.patched import PatchedFormat, choose_formats, count_misfits


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PatchedSegment:
    """Rows that share a width and a number of patches.

    Attributes:
        format: Of all these rows.
        rows: Their row indices in the weight, ascending, `[n]`.
        codes: `[n, in]`, whole, as those of an `EntropySegment`.
        row_exponents: Scales of the rows, `[n]`.
        column_exponents: Scales of the columns, `[in]`.
        stored_as: Number and nominal bits of each row's segment on disk (16 in `quant/packing.py`), `[n]`.
    """

    format: PatchedFormat
    rows: Int64[Tensor, "n"]
    codes: UInt8[Tensor, "n in"]
    row_exponents: UInt8[Tensor, "n"]
    column_exponents: UInt8[Tensor, "in"]
    stored_as: UInt8[Tensor, "n"]

    def dequantize(self) -> Float[Tensor, "n in"]:
        """The float32 values of these rows, bit for bit those of the entropy segments."""
        return dequantize_codes(self.codes, self.column_exponents, self.row_exponents)


def patch(segments: Sequence[Segment]) -> tuple[Segment | PatchedSegment, ...]:
    """Segments with those of entropy formats as they lie in memory, behind all others."""
    others = [part for part in segments if not isinstance(part, EntropySegment)]
    numbered = [(number, part) for number, part in enumerate(segments) if isinstance(part, EntropySegment)]
    if not numbered:
        return tuple(segments)
    misfits = torch.cat([count_misfits(part.codes) for _, part in numbered])
    columns = numbered[0][1].codes.shape[1]
    formats, own = choose_formats(misfits, columns, MAXIMUM_SEGMENTS - len(others))
    chosen = own.split([len(part.rows) for _, part in numbered])
    patched: list[PatchedSegment] = []
    for which, format in enumerate(formats):
        mine = [part.part(own == which) for (_, part), own in zip(numbered, chosen, strict=True)]
        names = [_name(number, part.format) for number, part in numbered]
        rows, order = torch.cat([part.rows for part in mine]).sort()
        stored_as = [torch.full_like(part.row_exponents, name) for part, name in zip(mine, names, strict=True)]
        patched.append(
            PatchedSegment(
                format=format,
                rows=rows,
                codes=torch.cat([part.codes for part in mine])[order],
                row_exponents=torch.cat([part.row_exponents for part in mine])[order],
                column_exponents=mine[0].column_exponents,
                stored_as=torch.cat(stored_as)[order],
            )
        )
    return *others, *patched


def restore(parts: Sequence[Segment | PatchedSegment]) -> tuple[Segment, ...]:
    """The segments that were patched, in their order.

    Raises:
        FormatError: the parts do not tell which segments there were.
    """
    others = [part for part in parts if not isinstance(part, PatchedSegment)]
    patched = [part for part in parts if isinstance(part, PatchedSegment)]
    if not patched:
        return tuple(others)
    names = torch.cat([part.stored_as for part in patched])
    found: dict[int, Segment] = {}
    for name in names.unique().tolist():
        mine = [(part, (part.stored_as == name).nonzero()[:, 0]) for part in patched]
        rows, order = torch.cat([part.rows[places] for part, places in mine]).sort()
        bits = (name & (1 << NUMBER_SHIFT) - 1) / ENTROPY_STEPS_PER_BIT
        if name >> NUMBER_SHIFT in found:
            raise FormatError(f"segment {name >> NUMBER_SHIFT} has two formats.")
        found[name >> NUMBER_SHIFT] = EntropySegment(
            format=EntropyFormat(bits=bits),
            rows=rows,
            codes=torch.cat([part.codes[places] for part, places in mine])[order],
            row_exponents=torch.cat([part.row_exponents[places] for part, places in mine])[order],
            column_exponents=patched[0].column_exponents,
        )
    waiting = iter(others)
    segments = [found[number] if number in found else next(waiting, None) for number in range(len(found) + len(others))]
    if None in segments or len({part.format for part in segments if part}) < len(segments):
        raise FormatError("segments that do not follow one another, or are alike.")
    return tuple(part for part in segments if part is not None)


def _name(number: int, format: EntropyFormat) -> int:
    return number << NUMBER_SHIFT | round(format.bits * ENTROPY_STEPS_PER_BIT)
