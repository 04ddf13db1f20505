"""Tensors to the kernels and back."""

from __future__ import annotations

import struct
from math import prod

import torch
from jaxtyping import Float32, Int32, Int64, UInt8
from torch import Tensor

from guidedq.errors import ArtifactError
from guidedq.quant.exponents import LARGEST_EXPONENT, scales_of
from guidedq.quant.formats import AffineFormat, EntropyFormat
from guidedq.quant.nested import NestedFormat
from guidedq.quant.packing import BlobLayout, SegmentLayout, region_widths
from guidedq.quant.patched import PatchedFormat

from .library import Library

MOST_INPUTS = 16
"""Rows of inputs that one call multiplies; `weight.h` has the same."""
INTEGER_BLOCK = 64
"""Inputs that share a scale when they are rounded to int8; `weight.h` has the same."""
_DONE, _NO_MEMORY, _NO_SUCH_ROW = 0, 2, 3
KINDS = {"affine": 0, "patched": 1, "fp16": 2, "bf16": 3, "fp32": 4}
SCALES = scales_of(torch.arange(LARGEST_EXPONENT + 1, dtype=torch.uint8, device="cpu"))


def describe(layout: BlobLayout, blob_bytes: int) -> bytes:
    """The layout as `weight.h` has it. The blob must be without streams."""
    columns_offset = -1 if layout.columns_offset is None else layout.columns_offset
    head = (*layout.shape, blob_bytes, columns_offset, len(layout.segments))
    numbers = [*head, *(number for part in layout.segments for number in segment_numbers(part, layout.shape[1]))]
    return struct.pack(f"={len(numbers)}q", *numbers)


def multiply_rows(
    library: Library,
    description: bytes,
    blob: UInt8[Tensor, "bytes"],
    listed: Int32[Tensor, "out"],
    inputs: Float32[Tensor, "*batch in"],
    *,
    integers: bool = False,
    instruction_set: int = 0,
) -> Float32[Tensor, "*batch out"]:
    """Multiply at most `MOST_INPUTS` rows of finite inputs by a weight, on as many threads as torch would use.

    Sums are in float32, codes and zero points apart: the error is that of a float32 sum of as many products, each of
    them as large as `scale * (|code - m| + |zero_point - m|) * |input|`, where `m` is 0 up to 4 bits and else the
    middle code. Processors with AVX-512 VNNI take the inputs as integers of 24 bits, whose scale the largest of each
    `INTEGER_BLOCK` columns decides: that one's unit in the last place counts for all of its block. There `m` is the
    middle code, but it is taken from eight sums side by side, each of which may be as large as without.

    Args:
        library: The kernels.
        description: From `describe`.
        blob: The weight; contiguous, as all tensors here.
        listed: Its rows, segment after segment.
        inputs: What to multiply.
        integers: Multiply what `round_activations` makes of them in blocks of `INTEGER_BLOCK`, in integers where the
            processor and the format allow it.
        instruction_set: Which of the library's; the best by default.

    Raises:
        ArtifactError: the blob has changed since it was described.
        MemoryError: there is no memory for a copy of the inputs.
    """
    *batch, _ = inputs.shape
    outputs = inputs.new_empty((*batch, len(listed)))
    given = (inputs.data_ptr(), prod(batch), outputs.data_ptr())
    arguments = (*given, torch.get_num_threads(), instruction_set, integers)
    outcome = library.multiply(description, blob.data_ptr(), SCALES.data_ptr(), listed.data_ptr(), *arguments)
    if outcome != _DONE:
        check_outcome(outcome)
    return outputs


def dequantize_rows(
    library: Library,
    description: bytes,
    blob: UInt8[Tensor, "bytes"],
    places: Int32[Tensor, "out"],
    wanted: Int64[Tensor, "n"] | range,
    columns: int,
    *,
    instruction_set: int = 0,
) -> Float32[Tensor, "n in"]:
    """Some rows of a weight, bit for bit as the reference dequantizes them. Arguments as for `multiply_rows`.

    Args:
        library: The kernels.
        description: From `describe`.
        blob: The weight.
        places: Where each row is listed.
        wanted: Which rows, in any order, or a range of them.
        columns: Of the weight.
        instruction_set: Which of the library's; the best by default.

    Raises:
        IndexError: there is no such row.
        ArtifactError: the blob has changed since it was described.
        MemoryError: there is no memory for a row.
    """
    outputs = torch.empty(len(wanted), columns)
    chosen = (None, wanted.start) if isinstance(wanted, range) else (wanted.data_ptr(), 0)
    arguments = (*chosen, len(wanted), outputs.data_ptr(), torch.get_num_threads(), instruction_set)
    check_outcome(library.dequantize(description, blob.data_ptr(), SCALES.data_ptr(), places.data_ptr(), *arguments))
    return outputs


def segment_numbers(part: SegmentLayout, columns: int) -> tuple[int, ...]:
    """One segment's numbers, in the order of `Segment` in `weight.h`; without a stream."""
    format = part.format
    starts = [part.offset]
    for width in region_widths(format, columns):
        starts.append(starts[-1] + part.rows * width)
    if isinstance(format, AffineFormat):
        groups = (format.columns_per_group(columns), format.groups(columns))
        kind = (KINDS["affine"], format.bits, *groups, int(format.symmetric), format.outliers)
        return (*kind, part.rows, *starts[:5])
    if isinstance(format, PatchedFormat):
        codes, scales, _, columns_of_patches, patches, _ = starts
        kind = (KINDS["patched"], format.bits, columns, 1, 1, format.patches)
        return (*kind, part.rows, codes, scales, 0, columns_of_patches, patches)
    assert not isinstance(format, EntropyFormat | NestedFormat), "neither is read row by row"
    return (KINDS[format.dtype], format.bits, 0, 0, 0, 0, part.rows, part.offset, 0, 0, 0, 0)


def check_outcome(outcome: int) -> None:
    """Turn what a call says of itself into an error.

    Raises:
        MemoryError: there was none.
        IndexError: there is no such row.
        ArtifactError: the weight is not what it was when it was described.
    """
    if outcome == _DONE:
        return
    if outcome == _NO_MEMORY:
        raise MemoryError("no memory to multiply by a packed weight.")
    if outcome == _NO_SUCH_ROW:
        raise IndexError("a row beyond the packed weight's.")
    raise ArtifactError(
        f"a packed weight in memory is not what it was when it was loaded (kernels: {outcome}). Load it anew."
    )
