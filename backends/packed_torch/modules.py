"""Modules that keep their weight packed, and multiply by it as it lies or dequantize it on use.

A packed weight stays packed in memory; an entropy-coded one is patched (`quant/patched.py`), which takes about a bit
more. Kernels (`kernels.py`) multiply a few inputs by it without unpacking; for more, each call unpacks the weight anew,
part by part, an embedding only the rows that are asked for. Where there are none (no compiler, another device, while
torch traces a model), all is done in plain torch arithmetic, some 100 million weights a second on one core. Values are
those of the reference dequantization bit for bit, then cast to the module's floating dtype (float32 unless `.half()` or
`.bfloat16()` was called); the kernels' products are rounded to it once, at the end.
"""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from guidedq.artifacts.packed_weight import pack_weight, segment_rows, unpack_weight
from guidedq.quant.nested import NestedFormat
from guidedq.quant.packing import PREFIX_BYTES, SEGMENT_HEADER, read_layout

from .matrix import PackedMatrix, round_inputs
from .native.calls import describe
from .operators import nested_linear, packed_linear, packed_matrix, packed_rows
from .planes import PlaneWeight


@final
class PackedWeight(nn.Module):
    """One weight as its blob; tied modules share one. Calling it gives the weight in the model's own shape.

    Attributes:
        rounds: Whether inputs are rounded to int8 before they are multiplied (`integers.py`).
    """

    rounds = False

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
        self.layout, self.description = layout, describe(layout, len(blob))
        self.register_buffer("blob", blob)
        self.register_buffer("listed", listed.int(), persistent=False)
        self.register_buffer("places", listed.argsort().int(), persistent=False)
        self.register_buffer("dtype_anchor", torch.empty(0), persistent=False)

    @property
    def held(self) -> PackedMatrix:
        """The tensors as a matrix."""
        tensors: Any = self._buffers  # which is faster than attributes
        return PackedMatrix(
            layout=self.layout,
            description=self.description,
            blob=tensors["blob"],
            listed=tensors["listed"],
            places=tensors["places"],
            dtype=tensors["dtype_anchor"].dtype,
            rounds=self.rounds,
        )

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """`(out, in)`."""
        return self.layout.shape

    def stored(self) -> UInt8[Tensor, "bytes"]:
        """The blob that a weights file holds."""
        return pack_weight(unpack_weight(self.blob.cpu(), self.layout.name, self.layout.shape))

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
        return self.held.dequantize()

    def rounded(self, inputs: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch in"]:
        """The inputs as they are multiplied."""
        return round_inputs(inputs) if self.rounds else inputs

    def multiply(self, inputs: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """The matrix times inputs; a large one is never whole in memory."""
        return self.held.multiply(inputs)

    def rows(self, index: Int64[Tensor, "n"]) -> Float[Tensor, "n in"]:
        """Some rows of the matrix, in any order, repeated or not; the others are not unpacked.

        Raises:
            IndexError: there is no such row.
        """
        if torch.compiler.is_compiling():
            return packed_rows(index, *self.operands)
        return self.held.rows(index)

    def extra_repr(self) -> str:
        """Shape and formats, for people."""
        return f"{self.shape}, {', '.join(str(part.format) for part in self.layout.segments)}"


@final
class PackedLinear(nn.Module):
    """A linear layer, or GPT-2's Conv1D: both multiply by the matrix `[out, in]`."""

    bias: Tensor | None

    def __init__(self, packed: PackedWeight | PlaneWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = packed
        self.out_features, self.in_features = packed.matrix_shape  # which models ask for
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    @property
    def weight(self) -> Tensor:
        """The dequantized weight, in the shape in which the model stores it."""
        return self.packed()

    def forward(self, values: Tensor) -> Tensor:
        """Multiply, and add the bias."""
        if torch.compiler.is_compiling():
            if isinstance(self.packed, PackedWeight):
                return packed_linear(self.packed.rounded(values), self.bias, *self.packed.operands)
            return nested_linear(values, self.bias, *self.packed.operands)
        outputs = self.packed.multiply(values)
        return outputs if self.bias is None else outputs.add_(self.bias)


@final
class PackedEmbedding(nn.Module):
    """An embedding, which unpacks only the rows that it looks up."""

    def __init__(self, packed: PackedWeight | PlaneWeight) -> None:
        super().__init__()
        self.packed = packed
        self.num_embeddings, self.embedding_dim = packed.matrix_shape  # which models ask for

    @property
    def weight(self) -> Tensor:
        """The whole dequantized table."""
        return self.packed()

    def forward(self, indices: Tensor) -> Tensor:
        """Look rows up.

        Raises:
            TypeError: the indices are no integers.
        """
        if indices.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"an embedding is looked up by int32 or int64 indices, found {indices.dtype}.")
        if isinstance(self.packed, PlaneWeight):
            return self.packed.rows(indices.long())
        return self.packed.rows(indices.reshape(-1).long()).unflatten(0, indices.shape)


def packed_weight(
    blob: UInt8[Tensor, "bytes"], name: str, shape: tuple[int, ...], *, transposed: bool
) -> PackedWeight | PlaneWeight:
    """A weight from its blob, by its format; arguments and errors as for `PackedWeight`."""
    rows = shape[-1] if transposed else shape[0]
    matrix = (rows, torch.Size(shape).numel() // rows)
    if isinstance(read_layout(blob, name, matrix).segments[0].format, NestedFormat):
        return PlaneWeight(unpack_weight(blob, name, matrix), shape, transposed=transposed)
    return PackedWeight(blob, name, shape, transposed=transposed)


def packed_module(module: nn.Module, parameter: str, packed: PackedWeight | PlaneWeight) -> nn.Module:
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


def _with_property(module: Any, parameter: str, packed: PackedWeight | PlaneWeight) -> nn.Module:
    original: type[nn.Module] = type(module)
    child = f"packed_{parameter}"
    weight = property(lambda self: getattr(self, child)())
    name = original.__name__ if original.__name__.startswith("Packed") else f"Packed{original.__name__}"
    delattr(module, parameter)
    module.add_module(child, packed)
    module.__class__ = type(name, (original,), {parameter: weight})
    return module
