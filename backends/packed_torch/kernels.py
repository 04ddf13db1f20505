"""Which kernels read packed weights where they lie: those in C on the CPU, those in Triton on a GPU, elsewhere none."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from .native.calls import dequantize_rows, multiply_rows
from .native.library import Library, library

if TYPE_CHECKING:
    from .matrix import PackedMatrix

TILE = 1 << 21
"""Weights that the kernels in C unpack at once for torch to multiply by: 8 MB of float32, rows enough for threads."""
GPU_TILE = 1 << 24
"""The same of those in Triton: 64 MB of float32, to keep a GPU busy for longer than a kernel takes to start."""


class AbstractKernels(ABC):
    """Kernels that multiply by a packed weight without unpacking it, and unpack some of its rows.

    Attributes:
        tile: Weights to unpack at once for torch to multiply by.
    """

    tile: int

    @abstractmethod
    def multiply(self, packed: PackedMatrix, inputs: Float32[Tensor, "*batch in"]) -> Float32[Tensor, "*batch out"]:
        """The matrix times a few finite inputs, contiguous and on its device; rounded first, if it `rounds` them."""

    @abstractmethod
    def dequantize(self, packed: PackedMatrix, wanted: Int64[Tensor, "n"] | range) -> Float32[Tensor, "n in"]:
        """Some rows of the matrix, bit for bit as the reference dequantizes them.

        Raises:
            IndexError: there is no such row.
        """


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NativeKernels(AbstractKernels):
    """Those in `native/`."""

    library: Library
    tile: int = TILE

    def multiply(self, packed: PackedMatrix, inputs: Float32[Tensor, "*batch in"]) -> Float32[Tensor, "*batch out"]:
        """On threads of the processor."""
        given = (packed.description, packed.blob, packed.listed, inputs)
        return multiply_rows(self.library, *given, integers=packed.rounds)

    def dequantize(self, packed: PackedMatrix, wanted: Int64[Tensor, "n"] | range) -> Float32[Tensor, "n in"]:
        """On threads of the processor."""
        lying = wanted if isinstance(wanted, range) else wanted.contiguous()
        columns = packed.layout.shape[1]
        return dequantize_rows(self.library, packed.description, packed.blob, packed.places, lying, columns)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TritonKernels(AbstractKernels):
    """Those of `triton_kernels.py`."""

    tile: int = GPU_TILE

    def multiply(self, packed: PackedMatrix, inputs: Float32[Tensor, "*batch in"]) -> Float32[Tensor, "*batch out"]:
        """On the GPU; not waited for."""
        from .triton_kernels import multiply_rows

        rounded = packed.rounded(inputs).flatten(0, -2) if inputs.dim() > 1 else packed.rounded(inputs)[None]
        outputs = multiply_rows(packed.layout, packed.blob, packed.listed, rounded)
        return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])

    def dequantize(self, packed: PackedMatrix, wanted: Int64[Tensor, "n"] | range) -> Float32[Tensor, "n in"]:
        """On the GPU; not waited for. It is there that torch finds rows that do not exist."""
        from .triton_kernels import dequantize_rows

        if isinstance(wanted, range):
            places = packed.places[wanted.start : wanted.stop]
        else:
            places = packed.places.index_select(0, wanted)
        return dequantize_rows(packed.layout, packed.blob, places)


def kernels_on(device: torch.device) -> AbstractKernels | None:
    """The kernels for weights on a device, or None where plain torch must do."""
    if device.type == "cpu":
        found = library()
        return None if found is None else _native(found)
    return _triton_on(device) if device.type == "cuda" else None


@cache
def _native(found: Library) -> NativeKernels:
    return NativeKernels(library=found)


@cache
def _triton_on(device: torch.device) -> TritonKernels | None:
    """Triton's kernels, if Triton is installed and they run on this GPU: it needs a C compiler for a first launch."""
    try:
        from .triton_kernels import OLDEST_CAPABILITY, try_on
    except ImportError:
        return None
    if torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        return None
    try:
        try_on(device)
    except Exception as error:  # compilers and drivers can be missing or old in many ways
        warnings.warn(
            f"Triton cannot run kernels on {device}, plain torch multiplies in their place, many times slower. "
            f"{type(error).__name__}: {error}",
            stacklevel=2,
        )
        return None
    return TritonKernels()
