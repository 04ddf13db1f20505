"""A weight as the runtime's quantized operators take it: codes in a container, scales and zero points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from guidedq.quant.formats import AffineFormat

from .layout import (
    BYTE_BITS,
    FAST_TWO_BIT_BLOCKS,
    LARGEST_BLOCK,
    LARGEST_GATHER_BLOCK,
    block_of,
    container_bytes,
)
from .patch import Patch
from .settings import Settings
from .skeleton import Slot
from .spare_bits import ODD_WIDTHS, function_name, hide, parts_of_all
from .streams import AffineRows, lane_shifts, store_order, store_scales, store_stream, stream_of

PLAIN_PARAMETERS = 2**16
"""From this size on, rows are stored as the runtime wants them, so that little is left to do at load; below, one tensor
less in the file counts for more."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Names of the parts of a weight in the graph.

    Attributes:
        data: The codes: `[out, blocks, bytes of a block]`, or `[out, bytes]` if only look-ups read it.
        scales: The scales `[out, blocks]`.
        scales_stored: The scales are still fp16, not yet of the type that the operators compute in.
        zero_points: The zero points `[out, bytes]`, `None` if they are the container's middle.
        container: Bits of a code.
        block: Columns of a block.
        groups: Blocks of a row.
    """

    data: str
    scales: str
    scales_stored: bool
    zero_points: str | None
    container: int
    block: int
    groups: int


def smallest_block(slot: Slot, formats: Sequence[AffineFormat]) -> int | None:
    """The block size that holds rows of all these formats side by side, `None` if one of them cannot be held."""
    largest = LARGEST_BLOCK if slot.linear else LARGEST_GATHER_BLOCK
    blocks = [block_of(format, slot.site.columns, largest) for format in formats]
    known = [block for block in blocks if block is not None]
    return min(known) if len(known) == len(blocks) else None


def uniform_container(slot: Slot, format: AffineFormat, block: int, settings: Settings) -> int:
    """Bits of the container for a site of one format: the next of 2, 4 and 8 at which the runtime is fast."""
    fast = settings.integer and block in FAST_TWO_BIT_BLOCKS
    if format.bits == 2 and (fast or not slot.linear):
        return 2
    return 4 if format.bits <= 4 else 8


def is_large(slot: Slot, format: AffineFormat, container: int, block: int, settings: Settings) -> bool:
    """Whether rows are stored as the runtime takes them, if need be with some of them in the spare bits of others.

    The codes fill the container, or have spare bits that rows divide into, and need no padding. In the baked style all
    are stored so.
    """
    if settings.style == "baked":
        return True
    unpadded = not slot.linear or slot.site.columns % block == 0
    return (
        slot.site.parameters >= PLAIN_PARAMETERS
        and unpadded
        and (format.bits == container or hides(slot, format, container, settings))
    )


def hides(slot: Slot, format: AffineFormat, container: int, settings: Settings) -> bool:
    """Whether rows of these codes can lie in the spare bits of others."""
    odd = (format.bits, container) in ODD_WIDTHS and not format.symmetric
    return odd and settings.bitwise and slot.site.rows % parts_of_all(format.bits, container) == 0


def write_uniform(
    patch: Patch, slot: Slot, rows: AffineRows, settings: Settings, *, container: int, block: int
) -> Packed:
    """Store a weight of one format."""
    columns = slot.site.columns
    groups = rows.format.groups(columns)
    scales = store_scales(patch, rows, columns)
    if is_large(slot, rows.format, container, block, settings):
        data, zero_points = _store_large(patch, slot, rows, settings, container=container, block=block)
        return Packed(
            data=data,
            scales=scales,
            scales_stored=True,
            zero_points=zero_points,
            container=container,
            block=block,
            groups=groups,
        )
    stream = store_stream(patch, rows, container, columns, settings)
    zero_points, stored = None, True
    if not rows.format.symmetric:
        stream, zero_points = patch.call_for(2, "Rows", [stream, scales], K=columns, b=container)
    elif rows.format.bits < container:
        # the codes go to the top of the container, whose middle is then their own
        shift = patch.constant(np.array(container - rows.format.bits, dtype=np.uint8))
        stream = patch.node("BitShift", [stream, shift], direction="LEFT")
        factor = patch.constant(np.array(2.0 ** (rows.format.bits - container), dtype=np.float32))
        scales = patch.node("Mul", [patch.node("Cast", [scales], to=1), factor])
        scales, stored = patch.node("Cast", [scales], to=settings.element_type), False
    if rows.format.symmetric:
        stream = patch.call("RowsS", [stream, scales], K=columns, b=container)
    data = _arranged(patch, slot, stream, scales, container=container, block=block)
    return Packed(
        data=data,
        scales=scales,
        scales_stored=stored,
        zero_points=zero_points,
        container=container,
        block=block,
        groups=groups,
    )


def write_mixed(
    patch: Patch, slot: Slot, segments: Sequence[AffineRows], settings: Settings, *, container: int, block: int
) -> Packed:
    """Store a weight whose rows have several formats: each segment is unpacked, then the rows are put in order."""
    blocks = -(-slot.site.columns // block)
    parts = [_write_segment(patch, slot, rows, settings, container=container, block=block) for rows in segments]
    joined = [patch.node("Concat", names, axis=0) for names in zip(*parts, strict=True)]
    slots = BYTE_BITS // container
    weights = patch.constant((1 << container * np.arange(slots, dtype=np.uint8))[:, None].astype(np.uint8))
    inputs = [
        *joined,
        store_order(patch, segments, slot.site.rows),
        patch.integers(0, -1, slots),
        weights,
        patch.integers(2),
    ]
    stream, zero_points, scales = patch.call_for(3, "Mix", inputs)
    data = _arranged(patch, slot, stream, scales, container=container, block=block)
    return Packed(
        data=data,
        scales=scales,
        scales_stored=False,
        zero_points=zero_points,
        container=container,
        block=block,
        groups=blocks,
    )


def _write_segment(
    patch: Patch, slot: Slot, rows: AffineRows, settings: Settings, *, container: int, block: int
) -> list[str]:
    """Unpack some rows: codes in the container, zero points one a byte, scales, each repeated for every block."""
    columns = slot.site.columns
    held = container if settings.bitwise else BYTE_BITS
    stream = stream_of(rows.format, held, columns)
    own = smallest_block(slot, [rows.format])
    assert own is not None
    group_of_block = np.arange(-(-columns // block), dtype=np.int32) // (own // block)
    padding = -len(group_of_block) % (BYTE_BITS // container)
    index, padded = patch.constant(group_of_block), patch.constant(np.pad(group_of_block, (0, padding), mode="edge"))
    size = rows.count * stream.width
    end = patch.store(np.int64, (1,), lambda: np.array([size], dtype=np.int64), per_row=False)
    unpacked, scales = store_stream(patch, rows, container, columns, settings), store_scales(patch, rows, columns)
    inputs = [unpacked, scales, patch.integers(0), end, patch.integers(-1, stream.width)]
    if rows.format.symmetric:
        middle = patch.constant(np.array(2 ** (rows.format.bits - 1), dtype=np.uint8))
        return patch.call_for(3, "SegmentS", [*inputs, middle, index, padded])
    cut = patch.integers(stream.codes_width, stream.width - stream.codes_width)
    lanes = [patch.integers(2), *lane_shifts(patch, container), patch.integers(0, -1)]
    return patch.call_for(3, "Segment", [*inputs, cut, *lanes, index, padded])


def _arranged(patch: Patch, slot: Slot, stream: str, scales: str, *, container: int, block: int) -> str:
    """Container bytes as the operators take them: in blocks for matrix products, flat for look-ups alone."""
    if slot.linear:
        return patch.call("Blob", [stream, scales], b=container, g=block)
    return patch.call("Data", [stream], K=slot.site.columns, b=container)


def _store_large(
    patch: Patch, slot: Slot, rows: AffineRows, settings: Settings, *, container: int, block: int
) -> tuple[str, str | None]:
    columns, format = slot.site.columns, rows.format
    groups = format.groups(columns)
    width = -(-columns * container // BYTE_BITS)
    shape = (groups, block * container // BYTE_BITS) if slot.linear else (width,)
    padding = groups * block - columns if slot.linear else 0
    middle = 2 ** (container - 1) - 2 ** (format.bits - 1) if format.symmetric else 0
    hidden = settings.style == "native" and format.bits < container

    def store(shape: tuple[int, ...], values: Callable[[], np.ndarray]) -> str:
        def packed() -> np.ndarray:
            bytes_of_rows = container_bytes(values(), container).reshape(rows.count, *shape)
            return hide(bytes_of_rows, format.bits, container) if hidden else bytes_of_rows

        count = rows.count * format.bits // container if hidden else rows.count
        stored = patch.store(np.uint8, (count, *shape), packed)
        return patch.call(function_name(format.bits), [stored]) if hidden else stored

    data = store(shape, lambda: np.pad(rows.codes + np.uint8(middle), ((0, 0), (0, padding))))
    if format.symmetric:
        return data, None
    return data, store((-(-groups * container // BYTE_BITS),), lambda: rows.zero_points)
