"""How codes lie in the file, and in the container that the runtime wants.

A container is ONNX Runtime's own packing: bytes that hold 8, 4 or 2 bits a code, lowest bits first. Codes of any width
are stored as power-of-two parts (3 bits as 2 + 1), each part dense, arranged so that one shift and one mask per part
make whole container bytes: stored byte `k` of a part of `p` bits holds, in its bit fields `s` of every code slot, the
container bytes `s * m + k`, where `m` is the number of stored bytes. A row's stream is its codes, padded to a
container byte, then its zero points; the streams of all rows follow one another, so only the whole is padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import UInt8

from guidedq.errors import FormatError
from guidedq.quant.formats import AffineFormat

SMALLEST_BLOCK = 16
LARGEST_BLOCK = 256
"""MatMulNBits takes blocks of 16 to 256 columns, powers of two."""
LARGEST_GATHER_BLOCK = 2**15
"""GatherBlockQuantized takes any power of two from 16; this is the largest that a group size can ask for."""
BYTE_BITS = 8
FAST_TWO_BIT_BLOCKS = (32, 64, 128)
"""Blocks at which the runtime has a fast kernel for 2-bit containers (at accuracy level 4)."""

_PARTS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def parts(bits: int) -> tuple[int, ...]:
    """The power-of-two widths, high to low, that make up a code of `bits` bits."""
    return _PARTS[bits]


def block_of(format: AffineFormat, columns: int, largest: int = LARGEST_BLOCK) -> int | None:
    """The runtime's block size that holds a row of `columns` weights in this format; `None` if it has none.

    A row that is one single group fits any block that is at least as long.
    """
    if format.outliers:
        return None
    size = format.group_size
    if format.groups(columns) == 1:
        size = max(SMALLEST_BLOCK, 1 << (columns - 1).bit_length())
    if size < SMALLEST_BLOCK or size > largest or size & (size - 1):
        return None
    return size


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """The stored form of rows of one affine format.

    Attributes:
        bits: Width of a code.
        container: Bits that the container has for a code, 2, 4 or 8, at least `bits`.
        columns: Codes of a row.
        zero_points: Zero points of a row, 0 for symmetric formats.
    """

    bits: int
    container: int
    columns: int
    zero_points: int

    def __post_init__(self) -> None:
        if self.container not in (2, 4, 8) or self.bits > self.container:
            raise FormatError(f"{self.bits}-bit codes do not fit a container of {self.container} bits.")

    @property
    def codes_width(self) -> int:
        """Container bytes of a row's codes."""
        return -(-self.columns * self.container // BYTE_BITS)

    @property
    def width(self) -> int:
        """Container bytes of a whole row, zero points included."""
        return self.codes_width + -(-self.zero_points * self.container // BYTE_BITS)

    @property
    def parts(self) -> tuple[int, ...]:
        """Widths of the stored parts; the container's own if the codes fill it."""
        return parts(self.bits)

    def lanes(self, part: int) -> int:
        """Container bytes that one stored byte of a part holds."""
        return self.container // part

    def part_bytes(self, part: int, rows: int) -> int:
        """Stored bytes of one part of so many rows."""
        return -(-rows * self.width // self.lanes(part))

    def shifts(self, part: int) -> UInt8[np.ndarray, "lanes 1"]:
        """Right shifts that bring each lane's bits to the bottom of its code slot."""
        return (np.arange(self.lanes(part), dtype=np.uint8) * part)[:, None].astype(np.uint8)

    def mask(self, part: int) -> UInt8[np.ndarray, ""]:
        """Ones in the lowest `part` bits of every code slot of a byte."""
        slots = range(0, BYTE_BITS, self.container)
        return np.array(sum((2**part - 1) << slot for slot in slots), dtype=np.uint8)

    def pack(
        self, codes: UInt8[np.ndarray, "n in"], zero_points: UInt8[np.ndarray, "n groups"]
    ) -> tuple[UInt8[np.ndarray, "bytes"], ...]:
        """The stored parts of these rows, high to low."""
        slots = self._slots(codes, zero_points)
        shift = self.bits
        packed: list[np.ndarray] = []
        for part in self.parts:
            shift -= part
            packed.append(self._pack_part((slots >> shift) & (2**part - 1), part))
        return tuple(packed)

    def unpack(self, packed: tuple[np.ndarray, ...], rows: int) -> UInt8[np.ndarray, "n width"]:
        """The container bytes of the rows, the twin of what the graph does at load."""
        total = np.zeros(rows * self.width, dtype=np.uint8)
        for part, stored in zip(self.parts, packed, strict=True):
            lanes = (stored >> self.shifts(part)) & self.mask(part)
            total = (total << part).astype(np.uint8) | lanes.reshape(-1)[: len(total)]
        return total.reshape(rows, self.width)

    def _slots(self, codes: np.ndarray, zero_points: np.ndarray) -> np.ndarray:
        """Codes and zero points in the slots of the container bytes, `[bytes, slots]`."""
        slots = BYTE_BITS // self.container
        padded = [np.pad(values, ((0, 0), (0, -values.shape[1] % slots))) for values in (codes, zero_points)]
        return np.concatenate(padded, axis=1).reshape(-1, slots)

    def _pack_part(self, values: np.ndarray, part: int) -> np.ndarray:
        lanes = self.lanes(part)
        width = -(-len(values) // lanes)
        by_lane = np.pad(values, ((0, lanes * width - len(values)), (0, 0))).reshape(lanes, width, -1)
        packed = np.zeros(width, dtype=np.uint8)
        for lane in range(lanes):
            for slot in range(by_lane.shape[2]):
                packed |= (by_lane[lane, :, slot] << (lane * part + slot * self.container)).astype(np.uint8)
        return packed


def container_bytes(values: UInt8[np.ndarray, "n k"], container: int) -> UInt8[np.ndarray, "n bytes"]:
    """Pack values of at most `container` bits one after another, lowest bits first, rows padded to a byte."""
    stream = Stream(bits=container, container=container, columns=values.shape[1], zero_points=0)
    return stream.pack(values, values[:, :0])[0].reshape(len(values), -1)
