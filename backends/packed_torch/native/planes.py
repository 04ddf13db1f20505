"""Nested weights to the kernels and back."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float16, Float32, Int16, Int32, Int64, UInt8
from torch import Tensor

from guidedq.quant.nested import NestedFormat

from .calls import check_outcome
from .library import Library


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """A nested weight in memory (see `planes.py` one folder up), and the precision at which it is read.

    Attributes:
        planes: Bits of 32 columns of 16 rows, from the top plane.
        scales: fp16 numbers as integers.
        zero_points: Of the widest width.
        ratios: Of the narrower widths.
        shifts: Of the narrower widths' rows, as codes.
        format: With the precision.
        shape: `(out, in)`, without what fills up blocks and words.
    """

    planes: Int32[Tensor, "plane block word lane"]
    scales: Int16[Tensor, "group row"]
    zero_points: UInt8[Tensor, "group row"]
    ratios: Float16[Tensor, "narrower"]
    shifts: UInt8[Tensor, "narrower out"]
    format: NestedFormat
    shape: tuple[int, int]

    def arguments(self) -> tuple[bytes | int | float | None, ...]:
        """What both kernels take first: the layout as `weight.h` has it, and the arrays."""
        (rows, columns), format = self.shape, self.format
        level = format.widths.index(format.precision)
        narrower = level < len(self.ratios)
        numbers = (rows, columns, format.columns_per_group(columns), format.groups(columns), len(self.planes))
        lengths = (self.planes.numel(), self.scales.numel(), self.shifts.shape[1] if narrower else 0)
        layout = struct.pack("=9q", *numbers, format.precision, *lengths)
        arrays = (self.planes.data_ptr(), self.scales.data_ptr(), self.zero_points.data_ptr())
        if not narrower:
            return layout, *arrays, None, 1.0
        return layout, *arrays, self.shifts[level].data_ptr(), float(self.ratios[level])


def multiply_planes(
    library: Library, weight: Planes, inputs: Float32[Tensor, "count in"], *, instruction_set: int = 0
) -> Float32[Tensor, "count out"]:
    """Multiply at most `MOST_INPUTS` rows of finite inputs by a nested weight, on as many threads as torch would use.

    Sums are in float32, of codes less the middle one, by four columns at once.

    Raises:
        ArtifactError: the weight's arrays have not the sizes that they should.
        MemoryError: there is no memory for the sums of the inputs.
    """
    outputs = inputs.new_empty(len(inputs), weight.shape[0])
    given = (inputs.data_ptr(), len(inputs), outputs.data_ptr(), torch.get_num_threads(), instruction_set)
    check_outcome(library.multiply_planes(*weight.arguments(), *given))
    return outputs


def dequantize_planes(
    library: Library, weight: Planes, wanted: Int64[Tensor, "n"] | range, *, instruction_set: int = 0
) -> Float32[Tensor, "n in"]:
    """Some rows of a nested weight, bit for bit as the reference dequantizes them.

    Raises:
        IndexError: there is no such row.
        ArtifactError: the weight's arrays have not the sizes that they should.
    """
    outputs = torch.empty(len(wanted), weight.shape[1])
    chosen = (None, wanted.start) if isinstance(wanted, range) else (wanted.data_ptr(), 0)
    given = (*chosen, len(wanted), outputs.data_ptr(), torch.get_num_threads(), instruction_set)
    check_outcome(library.dequantize_planes(*weight.arguments(), *given))
    return outputs
