"""Look-ups of rows: Gather nodes become GatherBlockQuantized, which dequantizes no more than the rows it fetches."""

from __future__ import annotations

from .layout import BYTE_BITS
from .packed import Packed
from .patch import Patch
from .settings import Settings
from .skeleton import Reader, Slot
from .unpacking import RUNTIME_DOMAIN


def write_gather(patch: Patch, slot: Slot, reader: Reader, packed: Packed, settings: Settings) -> None:
    """Put the look-up in the reader's place.

    Where a matrix product reads the same codes (a tied head), they are `[out, blocks, bytes of a block]`, and both
    share them: the look-up then has one block a row, and its result is flattened. That takes the rank of the indices;
    where the file does not tell it, the codes are held twice.
    """
    columns = slot.site.columns
    scales, zero_points = packed.scales, packed.zero_points
    data, width, shape = packed.data, -(-columns * packed.container // BYTE_BITS) * BYTE_BITS // packed.container, None
    scales_shape = [slot.site.rows, packed.groups]
    zeros_shape = [slot.site.rows, -(-packed.groups * packed.container // BYTE_BITS)]
    if slot.linear:
        width = packed.groups * packed.block
        if reader.rank is None:
            data = patch.node("Reshape", [data, patch.integers(0, -1)])
        else:
            shape = [0] * reader.rank + [-1]
            scales_shape = zeros_shape = [slot.site.rows, packed.groups, 1]
            if zero_points:
                zero_points = patch.call("Tied", [zero_points, packed.scales], b=packed.container)
    # the runtime compares the shapes of scales and zero points before it folds anything: it must know both
    if packed.scales_stored:
        scales = patch.node("Cast", [scales], to=settings.element_type)
    scales = patch.node("Reshape", [scales, patch.integers(*scales_shape)])
    if zero_points:
        zero_points = patch.node("Reshape", [zero_points, patch.integers(*zeros_shape)])
    inputs = [data, reader.node.input[1], scales, *([zero_points] if zero_points else [])]
    _write_nodes(patch, slot, reader, packed, inputs=inputs, width=width, shape=shape)


def _write_nodes(
    patch: Patch, slot: Slot, reader: Reader, packed: Packed, *, inputs: list[str], width: int, shape: list[int] | None
) -> None:
    columns, at, node = slot.site.columns, reader.index, reader.node
    final = node.output[0]
    cut = width != columns
    value = patch.node(
        "GatherBlockQuantized",
        inputs,
        final if shape is None and not cut else None,
        at,
        domain=RUNTIME_DOMAIN,
        bits=packed.container,
        block_size=packed.block,
        gather_axis=0,
        quantize_axis=1 if shape is None else 2,
        **({"name": node.name} if node.name else {}),
    )
    if shape is not None:
        value = patch.node("Reshape", [value, patch.integers(*shape)], None if cut else final, at)
    if cut:
        limits = [patch.integers(number) for number in (0, columns, -1)]
        patch.node("Slice", [value, *limits], final, at)
