"""Nested weights in memory: bit planes, of which a product reads only those of the precision that is set.

Plane `p` holds bit `p`, from the top, of every code. Sixteen rows lie side by side: word `[plane, block, word, lane]`
has the bits of 32 columns of row `16 * block + lane`. The planes of a narrow width are the first ones, in one piece;
kernels look four columns' bits up in the sums of their inputs, so that each plane costs the same time. Rows and columns
are filled up with zeros to whole blocks and words. Scales lie `[group, row]` for the same reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor, nn
from torch.nn.functional import pad

from guidedq.artifacts.nested_segment import NestedSegment
from guidedq.artifacts.packed_weight import pack_weight
from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.errors import ArtifactError
from guidedq.quant.grid import Grid
from guidedq.quant.nested import NestedFormat, widths_text
from guidedq.schedules.precision import AbstractNestedWeight

from .native.library import Library, library
from .native.planes import Planes, dequantize_planes, multiply_planes
from .operators import nested_matrix, nested_rows

BLOCK_ROWS = 16
WORD_COLUMNS = 32
FEW_INPUTS = 4
"""So many inputs at most are multiplied plane by plane: beyond, torch's product makes up for unpacking."""


@final
class PlaneWeight(nn.Module, AbstractNestedWeight):
    """One nested weight; tied modules share one. Calling it gives the weight in the model's own shape."""

    planes: Tensor
    scales: Tensor
    zero_points: Tensor
    ratios: Tensor
    shifts: Tensor
    dtype_anchor: Tensor

    def __init__(self, weight: QuantizedWeight, shape: tuple[int, ...], *, transposed: bool) -> None:
        """Hold a weight whose only segment is nested, at its widest precision.

        Args:
            weight: The weight as a matrix.
            shape: As the model stores it.
            transposed: Whether the matrix is the transpose of that.
        """
        super().__init__()
        (segment,) = weight.segments
        assert isinstance(segment, NestedSegment), "a nested segment stands alone"
        self.name, self.shape, self.transposed = weight.name, shape, transposed
        rows = weight.shape[0]
        tensors = {
            "planes": planes_of(segment.codes, segment.format.widest),
            "scales": _padded(segment.grid.scales, rows).view(torch.int16),
            "zero_points": _padded(segment.grid.zero_points, rows),
            "ratios": segment.ratios.view(torch.int16),  # as integers, .to(dtype) leaves them alone
            "shifts": segment.shifts,
        }
        self._hold(tensors, torch.empty(0), segment.format, weight.shape)

    @classmethod
    def around(
        cls, tensors: Mapping[str, Tensor], dtype_anchor: Tensor, format: NestedFormat, shape: tuple[int, int]
    ) -> PlaneWeight:
        """The same weight as a matrix, around tensors that an operator was given."""
        weight = cls.__new__(cls)
        nn.Module.__init__(weight)
        weight.name, weight.shape, weight.transposed = "a nested weight", shape, False
        weight._hold(tensors, dtype_anchor, format, shape)
        return weight

    def _hold(
        self, tensors: Mapping[str, Tensor], dtype_anchor: Tensor, format: NestedFormat, shape: tuple[int, int]
    ) -> None:
        self.matrix_shape, self.format, self.format_text = shape, format, str(format)
        self.precision: int | Tensor = format.widest
        for name, values in tensors.items():
            self.register_buffer(name, values)
        self.register_buffer("dtype_anchor", dtype_anchor, persistent=False)

    @property
    def widths(self) -> tuple[int, ...]:
        """Those that it holds, rising."""
        return self.format.widths

    def read_at(self, precision: int | Tensor) -> None:
        """From now on read it at this width, or at one for each position."""
        self.precision = precision

    def stored(self) -> UInt8[Tensor, "bytes"]:
        """The blob that a weights file holds."""
        segment = self.segment(slice(None))
        return pack_weight(QuantizedWeight(name=self.name, shape=self.matrix_shape, segments=(segment,)))

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, int, str, int, int]:
        """What the operators of `operators.py` take for this weight, at its precision.

        Raises:
            ArtifactError: the model is exported while positions differ in their precision.
        """
        given = self.precision
        if not isinstance(given, int) and torch.compiler.is_exporting():
            raise ArtifactError(f"{self.name}: an exported program has one precision. Set one for all.")
        positions, precision = (None, given) if isinstance(given, int) else (given, self.format.widest)
        tensors = (self.planes, self.scales, self.zero_points, self.dtype_anchor, self.ratios, self.shifts)
        return *tensors, positions, precision, self.format_text, *self.matrix_shape

    def forward(self) -> Tensor:
        """The weight at its precision, in the shape in which the model stores it.

        Raises:
            ArtifactError: positions differ in their precision, but the whole weight is asked for.
        """
        if not isinstance(self.precision, int):
            raise ArtifactError(
                f"{self.name}: linear layers and embeddings alone take a precision for each position. Set one for all."
            )
        matrix = nested_matrix(*self.operands) if torch.compiler.is_compiling() else self.matrix(self.precision)
        return matrix.t() if self.transposed else matrix.reshape(self.shape)

    def multiply(self, inputs: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """The matrix times inputs, each at its precision."""
        if isinstance(self.precision, int):
            return self._multiply(inputs, self.precision)
        places = self._places(inputs.shape[:-1])
        outputs = inputs.new_empty(*inputs.shape[:-1], self.matrix_shape[0])
        for width in self.widths:
            chosen = places == width
            if bool(chosen.any()):
                outputs[chosen] = self._multiply(inputs[chosen], width)
        return outputs

    def rows(self, index: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch in"]:
        """Some rows of the matrix, each at its precision."""
        if torch.compiler.is_compiling():
            return nested_rows(index, *self.operands)
        if isinstance(self.precision, int):
            return self._rows(index, self.precision)
        places = self._places(index.shape)
        values = self.dtype_anchor.new_empty(*index.shape, self.matrix_shape[1])
        for width in self.widths:
            chosen = places == width
            values[chosen] = self._rows(index[chosen], width)
        return values

    def matrix(self, precision: int) -> Float[Tensor, "out in"]:
        """The matrix at one precision."""
        if (kernels := self._kernels(self.planes)) is not None:
            rows = range(self.matrix_shape[0])
            return dequantize_planes(kernels, self._described(precision), rows).to(self.dtype_anchor.dtype)
        return self.segment(slice(None)).at(precision).dequantize().to(self.dtype_anchor.dtype)

    def segment(self, rows: Tensor | slice) -> NestedSegment:
        """Some rows as they were stored, all planes read."""
        count, columns = self.matrix_shape
        index = torch.arange(count, device=self.planes.device)[rows]
        taken = self.planes[:, index // BLOCK_ROWS, :, index % BLOCK_ROWS].long()  # [n, plane, word]
        codes = torch.zeros(len(index), columns, dtype=torch.uint8, device=index.device)
        places = torch.arange(WORD_COLUMNS, device=index.device)
        for plane in range(taken.shape[1]):
            bits = (taken[:, plane, :, None] >> places & 1).to(torch.uint8).flatten(1)[:, :columns]
            codes = codes << 1 | bits
        return NestedSegment(
            format=self.format,
            rows=index,
            codes=codes,
            grid=Grid(scales=self.scales.view(torch.float16).t()[index], zero_points=self.zero_points.t()[index]),
            ratios=self.ratios.view(torch.float16),
            shifts=self.shifts[:, index],
        )

    def _multiply(self, inputs: Tensor, precision: int) -> Tensor:
        rows, columns = self.matrix_shape
        if (kernels := self._kernels(inputs)) is not None and self._few(inputs):
            lying = inputs.reshape(-1, columns).float().contiguous()
            outputs = multiply_planes(kernels, self._described(precision), lying)
            return outputs.to(inputs.dtype).reshape(*inputs.shape[:-1], rows)
        return nn.functional.linear(inputs, self.matrix(precision))

    def _rows(self, index: Tensor, precision: int) -> Tensor:
        wanted = index.reshape(-1)
        if (kernels := self._kernels(index)) is not None:
            values = dequantize_planes(kernels, self._described(precision), wanted.contiguous())
        else:
            values = self.segment(wanted).at(precision).dequantize()
        return values.to(self.dtype_anchor.dtype).reshape(*index.shape, self.matrix_shape[1])

    def _described(self, precision: int) -> Planes:
        return Planes(
            planes=self.planes,
            scales=self.scales,
            zero_points=self.zero_points,
            ratios=self.ratios.view(torch.float16),
            shifts=self.shifts,
            format=self.format.at(precision),
            shape=self.matrix_shape,
        )

    def _places(self, shape: torch.Size) -> Tensor:
        """The precision of each position of a tensor of this shape.

        Raises:
            ArtifactError: there are other positions than precisions.
        """
        assert isinstance(self.precision, Tensor)
        try:
            return self.precision.to(self.planes.device).expand(shape)
        except RuntimeError as error:
            raise ArtifactError(
                f"{self.name}: precisions were set for positions {list(self.precision.shape)}, found {list(shape)}. "
                "Set them anew for each batch."
            ) from error

    def _few(self, inputs: Tensor) -> bool:
        dtype = self.dtype_anchor.dtype
        narrow = dtype in (torch.float32, torch.bfloat16, torch.float16) and inputs.dtype is dtype
        graded = inputs.requires_grad and torch.is_grad_enabled()
        columns = self.matrix_shape[1]
        return narrow and not graded and inputs.shape[-1] == columns and inputs.numel() <= FEW_INPUTS * columns

    def _kernels(self, given: Tensor) -> Library | None:
        lying = all(type(values) is Tensor and values.device.type == "cpu" for values in (self.planes, given))
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        return library() if lying and not traced else None

    def extra_repr(self) -> str:
        """Shape, widths and precision, for people."""
        read = f"{self.precision} bits" if isinstance(self.precision, int) else "bits by position"
        return f"{self.shape}, nested {widths_text(self.widths)}, read at {read}"


def planes_of(codes: UInt8[Tensor, "out in"], bits: int) -> Int32[Tensor, "plane block word lane"]:
    """The bit planes of codes, from the top."""
    rows, columns = codes.shape
    whole = pad(codes, (0, -columns % WORD_COLUMNS, 0, -rows % BLOCK_ROWS))
    cut = whole.view(-1, BLOCK_ROWS, whole.shape[1] // WORD_COLUMNS, WORD_COLUMNS)
    weights = torch.ones(WORD_COLUMNS, dtype=torch.int64) << torch.arange(WORD_COLUMNS)
    words = torch.stack([((cut >> bit & 1) * weights).sum(-1) for bit in reversed(range(bits))])
    return words.transpose(2, 3).to(torch.int32).contiguous()


def _padded(values: Tensor, rows: int) -> Tensor:
    """`[out, group]` to `[group, row]`, rows filled up."""
    return pad(values, (0, 0, 0, -rows % BLOCK_ROWS)).t().contiguous()
