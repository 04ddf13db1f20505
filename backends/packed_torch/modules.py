"""Modules that keep their weight packed and dequantize it on use, in plain torch arithmetic.

A packed weight stays packed in memory, an entropy-coded one with a byte for each code; each call unpacks it anew (some
100 million weights a second on one core), an embedding only the rows that are asked for. Values are those of the
reference dequantization bit for bit, then cast to the module's floating dtype (float32 unless `.half()` or
`.bfloat16()` was called).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from guidedq.artifacts.packed_weight import pack_weight, read_segment, segment_rows, unpack_weight
from guidedq.artifacts.quantized_weight import WEIGHTS_AT_ONCE
from guidedq.quant.packing import PREFIX_BYTES, SEGMENT_HEADER, BlobLayout, read_layout

from .operators import packed_linear, packed_matrix, packed_rows

LARGE_MATRIX = 1 << 24
"""Weights of a matrix that is multiplied part by part: 64 MB of float32."""


@final
class PackedWeight(nn.Module):
    """One weight as its blob; tied modules share one. Calling it gives the weight in the model's own shape."""

    blob: Tensor
    listed: Tensor
    places: Tensor
    dtype_anchor: Tensor

    def __init__(self, blob: UInt8[Tensor, "bytes"], name: str, shape: tuple[int, ...], *, transposed: bool) -> None:
        """Take the blob of a weight whose shape in the model is `shape`, and whose matrix is its transpose if so said.

        All of it is read once; streams of codes are unpacked for good.

        Raises:
            ArtifactError: the blob is damaged, or does not fit.
        """
        super().__init__()
        self.shape = shape
        self.transposed = transposed
        rows = shape[-1] if transposed else shape[0]
        matrix = (rows, torch.Size(shape).numel() // rows)
        weight = unpack_weight(blob, name, matrix)
        if read_layout(blob, name, matrix).has_streams:
            blob = pack_weight(weight, streams=False)
        layout = read_layout(blob, name, matrix)
        self.header = bytes(blob[: PREFIX_BYTES + SEGMENT_HEADER.size * len(layout.segments)].tolist()).hex()
        listed = torch.cat(segment_rows(blob, name, layout))
        self._hold(blob, listed.int(), listed.argsort().int(), torch.empty(0), layout)

    @classmethod
    def around(
        cls, blob: Tensor, listed: Tensor, places: Tensor, dtype_anchor: Tensor, layout: BlobLayout
    ) -> PackedWeight:
        """The same weight as a matrix, around tensors that an operator was given; nothing is read or checked."""
        packed = cls.__new__(cls)
        nn.Module.__init__(packed)
        packed.shape, packed.transposed = layout.shape, False
        packed._hold(blob, listed, places, dtype_anchor, layout)
        return packed

    def _hold(self, blob: Tensor, listed: Tensor, places: Tensor, dtype_anchor: Tensor, layout: BlobLayout) -> None:
        self.layout = layout
        self.register_buffer("blob", blob)
        self.register_buffer("listed", listed, persistent=False)  # rows, segment after segment
        self.register_buffer("places", places, persistent=False)  # where each row is listed
        self.register_buffer("dtype_anchor", dtype_anchor, persistent=False)

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor, str, int, int]:
        """What the operators of `operators.py` take for this weight."""
        return self.blob, self.listed, self.places, self.dtype_anchor, self.header, *self.layout.shape

    def forward(self) -> Tensor:
        """The weight, in the shape in which the model stores it."""
        return self.matrix().t() if self.transposed else self.matrix().reshape(self.shape)

    def matrix(self) -> Float[Tensor, "out in"]:
        """The weight as a matrix."""
        if torch.compiler.is_compiling():
            return packed_matrix(*self.operands)
        values = self.dtype_anchor.new_empty(self.layout.shape)
        for rows, part in self.parts():
            values[rows] = part
        return values

    def parts(self) -> Iterator[tuple[Int64[Tensor, "n"], Float[Tensor, "n in"]]]:
        """The matrix in parts that fit a core's cache: some rows' numbers, and their values."""
        start = 0
        step = max(1, WEIGHTS_AT_ONCE // self.layout.shape[1])
        for part in self.layout.segments:
            rows = self.listed[start : start + part.rows].long()
            for first in range(0, part.rows, step):
                places = slice(first, first + step)
                mine = rows[places]
                segment = read_segment(self.blob, self.layout, part, mine, places)
                yield mine, segment.dequantize().to(self.dtype_anchor.dtype)
            start += part.rows

    def rows(self, index: Int64[Tensor, "n"]) -> Float[Tensor, "n in"]:
        """Some rows of the matrix, in any order, repeated or not; the others are not unpacked.

        Raises:
            IndexError: there is no such row.
        """
        if torch.compiler.is_compiling():
            return packed_rows(index, *self.operands)
        values = self.dtype_anchor.new_empty(len(index), self.layout.shape[1])
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

    def extra_repr(self) -> str:
        """Shape and formats, for people."""
        return f"{self.shape}, {', '.join(str(part.format) for part in self.layout.segments)}"


@final
class PackedLinear(nn.Module):
    """A linear layer, or GPT-2's Conv1D: both multiply by the matrix `[out, in]`."""

    bias: Tensor | None

    def __init__(self, packed: PackedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = packed
        self.out_features, self.in_features = packed.layout.shape  # which models ask for
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    @property
    def weight(self) -> Tensor:
        """The dequantized weight, in the shape in which the model stores it."""
        return self.packed()

    def forward(self, values: Tensor) -> Tensor:
        """Multiply, and add the bias. A large matrix, such as a head's, is never whole in memory."""
        if torch.compiler.is_compiling():
            return packed_linear(values, self.bias, *self.packed.operands)
        rows, columns = self.packed.layout.shape
        if rows * columns <= LARGE_MATRIX:
            return nn.functional.linear(values, self.packed.matrix(), self.bias)
        outputs = values.new_empty(*values.shape[:-1], rows)
        for mine, part in self.packed.parts():
            outputs.index_copy_(-1, mine, nn.functional.linear(values, part))
        return outputs if self.bias is None else outputs.add_(self.bias)


@final
class PackedEmbedding(nn.Module):
    """An embedding, which unpacks only the rows that it looks up."""

    def __init__(self, packed: PackedWeight) -> None:
        super().__init__()
        self.packed = packed
        self.num_embeddings, self.embedding_dim = packed.layout.shape  # which models ask for

    @property
    def weight(self) -> Tensor:
        """The whole dequantized table."""
        return self.packed()

    def forward(self, indices: Tensor) -> Tensor:
        """Look rows up."""
        return self.packed.rows(indices.reshape(-1).long()).unflatten(0, indices.shape)


def packed_module(module: nn.Module, parameter: str, packed: PackedWeight) -> nn.Module:
    """The module that stands in for `module`, whose parameter of that name is now packed.

    Linear, Conv1D and Embedding get their own class. Any other (a convolution, a subclass with a forward of its own)
    becomes an instance of `Packed<its class>`, derived on the spot, where the parameter is a property that dequantizes.
    """
    from transformers.pytorch_utils import Conv1D

    if type(module) in (nn.Linear, Conv1D):
        return PackedLinear(packed, module.bias)  # pyright: ignore[reportArgumentType]
    if type(module) is nn.Embedding and module.max_norm is None:
        return PackedEmbedding(packed)
    return _with_property(module, parameter, packed)


def _with_property(module: Any, parameter: str, packed: PackedWeight) -> nn.Module:
    original: type[nn.Module] = type(module)
    child = f"packed_{parameter}"
    weight = property(lambda self: getattr(self, child)())
    name = original.__name__ if original.__name__.startswith("Packed") else f"Packed{original.__name__}"
    delattr(module, parameter)
    module.add_module(child, packed)
    module.__class__ = type(name, (original,), {parameter: weight})
    return module
