"""A packed weight as a matrix: tensors and where everything lies in them, to multiply by, or to dequantize.

Modules hold one, custom operators make one at each call: nothing is read, checked or copied for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor, nn

from guidedq.artifacts.packed_weight import read_segment
from guidedq.artifacts.quantized_weight import WEIGHTS_AT_ONCE
from guidedq.ir.activation_rounding import round_activations
from guidedq.quant.packing import BlobLayout

from .kernels import AbstractKernels, kernels_on
from .native.calls import INTEGER_BLOCK

LARGE_MATRIX = 1 << 24
"""Weights of a matrix that plain torch multiplies part by part: 64 MB of float32."""
FEW_INPUTS = 8
"""So many inputs at most are multiplied without unpacking: beyond, torch's matrix product makes up for unpacking."""


@final
@dataclass(slots=True, kw_only=True)
class PackedMatrix:
    """A weight `[out, in]` in its blob.

    Attributes:
        layout: Of the blob, which is without streams.
        description: The same for the kernels in C.
        blob: The bytes.
        listed: Rows, segment after segment.
        places: Where each row is listed.
        dtype: Of the numbers to compute with.
        rounds: Whether inputs are rounded to int8 before they are multiplied.
    """

    layout: BlobLayout
    description: bytes
    blob: UInt8[Tensor, "bytes"]
    listed: Int32[Tensor, "out"]
    places: Int32[Tensor, "out"]
    dtype: torch.dtype
    rounds: bool = False

    def dequantize(self) -> Float[Tensor, "out in"]:
        """All of it."""
        values = self.blob.new_empty(self.layout.shape, dtype=self.dtype)
        for rows, part in self.parts():
            values[rows] = part
        return values

    def rounded(self, inputs: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch in"]:
        """The inputs as they are multiplied."""
        return round_inputs(inputs) if self.rounds else inputs

    def multiply(self, inputs: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """The matrix times inputs; a large one is never whole in memory."""
        rows, columns = self.layout.shape
        kernels = self._kernels(inputs)
        if kernels is not None and _few(inputs, self.dtype, columns):
            return kernels.multiply(self, inputs.float().contiguous()).to(inputs.dtype)
        inputs = self.rounded(inputs)
        if rows * columns <= (LARGE_MATRIX if kernels is None else kernels.tile):
            return nn.functional.linear(inputs, self.dequantize())
        outputs = inputs.new_empty(*inputs.shape[:-1], rows)
        for mine, part in self.parts():
            outputs[..., mine] = nn.functional.linear(inputs, part)
        return outputs

    def parts(self) -> Iterator[tuple[Int64[Tensor, "n"] | slice, Float[Tensor, "n in"]]]:
        """The matrix in parts: some rows' numbers, and their values."""
        rows, columns = self.layout.shape
        if (kernels := self._kernels(self.places)) is not None:
            step = max(1, kernels.tile // columns)
            for first in range(0, rows, step):
                mine = range(first, min(first + step, rows))
                yield slice(mine.start, mine.stop), kernels.dequantize(self, mine).to(self.dtype)
            return
        step = max(1, WEIGHTS_AT_ONCE // columns)
        start = 0
        for part in self.layout.segments:
            listed = self.listed[start : start + part.rows].long()
            for first in range(0, part.rows, step):
                places = slice(first, first + step)
                segment = read_segment(self.blob, self.layout, part, listed[places], places)
                yield listed[places], segment.dequantize().to(self.dtype)
            start += part.rows

    def rows(self, index: Int64[Tensor, "n"]) -> Float[Tensor, "n in"]:
        """Some rows of the matrix, in any order, repeated or not; the others are not unpacked.

        Raises:
            IndexError: there is no such row.
        """
        columns = self.layout.shape[1]
        if (kernels := self._kernels(index)) is not None:
            return kernels.dequantize(self, index).to(self.dtype)
        values = self.blob.new_empty(len(index), columns, dtype=self.dtype)
        places = self.places.index_select(0, index).long()
        start = 0
        for part in self.layout.segments:
            chosen = ((places >= start) & (places < start + part.rows)).nonzero()[:, 0]
            own = places.index_select(0, chosen) - start
            if len(chosen):
                segment = read_segment(self.blob, self.layout, part, own, own)
                values[chosen] = segment.dequantize().to(values.dtype)
            start += part.rows
        return values

    def _kernels(self, given: Tensor) -> AbstractKernels | None:
        """The kernels, if they can read both the weight and what is given: traced tensors have no memory."""
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        if traced or self.blob.device != given.device or not (_lies(self.blob) and _lies(given)):
            return None
        return kernels_on(self.blob.device)


def round_inputs(inputs: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch in"]:
    """What the integer kernels multiply: int8, in blocks that share a scale."""
    return round_activations(inputs.float(), INTEGER_BLOCK).to(inputs.dtype)


def _lies(values: Tensor) -> bool:
    """Whether a tensor's numbers lie in memory as they are: not those of `vmap`, unwritten zeros, or negated views."""
    try:
        address = values.data_ptr()
    except RuntimeError:
        return False
    return type(values) is Tensor and not values.is_neg() and (address != 0 or values.numel() == 0)


def _few(inputs: Tensor, dtype: torch.dtype, columns: int) -> bool:
    """Whether the kernels take these inputs: few enough, of the module's dtype, and without a gradient to come."""
    narrow = dtype in (torch.float32, torch.bfloat16, torch.float16) and inputs.dtype is dtype
    graded = inputs.requires_grad and torch.is_grad_enabled()
    fits = inputs.dim() > 0 and inputs.shape[-1] == columns and inputs.numel() <= FEW_INPUTS * columns
    return narrow and fits and not graded
