"""Matrix products: MatMul and Gemm nodes become MatMulNBits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from .gather import write_gather
from .packed import is_large, smallest_block, uniform_container, write_mixed, write_uniform
from .patch import Patch
from .settings import Settings
from .skeleton import Reader, Slot
from .streams import AffineRows, store_scales, store_stream


def write_packed(patch: Patch, slot: Slot, segments: Sequence[AffineRows], settings: Settings) -> None:
    """Store the weight and replace all nodes that read it. Every format must have a block (`smallest_block`)."""
    formats = [rows.format for rows in segments]
    block = smallest_block(slot, formats)
    assert block is not None, f"{slot.site.name}: a format that the footprint does not offer"
    if len(segments) > 1:
        container = 4 if max(format.bits for format in formats) <= 4 else 8
        packed = write_mixed(patch, slot, segments, settings, container=container, block=block)
    else:
        container = uniform_container(slot, formats[0], block, settings)
        if len(slot.readers) == 1 and slot.linear and not is_large(slot, formats[0], container, block, settings):
            _write_compact(patch, slot, segments[0], settings, container=container, block=block)
            return
        packed = write_uniform(patch, slot, segments[0], settings, container=container, block=block)
    for reader in slot.linear:
        stored = [packed.data, packed.scales, *([packed.zero_points] if packed.zero_points else [])]
        function = "Matrix" if packed.zero_points else "MatrixS"
        sizes = _sizes(slot, packed.container, packed.block)
        write_product(patch, slot, reader, partial(patch.call, function), stored=stored, **sizes)
    for reader in slot.gathers:
        write_gather(patch, slot, reader, packed, settings)


def _write_compact(
    patch: Patch, slot: Slot, rows: AffineRows, settings: Settings, *, container: int, block: int
) -> None:
    """One matrix product reads a weight of one format: a single call unpacks and multiplies."""
    stream = store_stream(patch, rows, container, slot.site.columns, settings)
    stored = [stream, store_scales(patch, rows, slot.site.columns)]
    if rows.format.symmetric:
        shift = container - rows.format.bits
        stored.append(patch.constant(np.array(shift, dtype=np.uint8)))
        stored.append(patch.constant(np.array(2.0**-shift, dtype=np.float32)))
    function = "LinearS" if rows.format.symmetric else "Linear"
    sizes = _sizes(slot, container, block)
    write_product(patch, slot, slot.readers[0], partial(patch.call, function), stored=stored, **sizes)


def _sizes(slot: Slot, container: int, block: int) -> dict[str, int]:
    return {"K": slot.site.columns, "N": slot.site.rows, "b": container, "g": block}


def write_product(
    patch: Patch, slot: Slot, reader: Reader, multiply: Callable[..., str], *, stored: Sequence[str], **options: Any
) -> None:
    """Put a node in the reader's place that multiplies, with what a Gemm does besides.

    Args:
        patch: Takes the nodes.
        slot: The site.
        reader: What is replaced.
        multiply: Adds the node: takes its inputs, its output if that is given, its place and its options.
        stored: The inputs besides the activation.
        **options: Of the node.
    """
    node, at = reader.node, reader.index
    asked: dict[str, Any] = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    activation, bias = node.input[0], node.input[2] if len(node.input) > 2 else ""
    if asked.get("transA", 0):
        activation = patch.node("Transpose", [activation], at=at, perm=[1, 0])
    alpha, beta = asked.get("alpha", 1.0), asked.get("beta", 1.0)
    steps: list[tuple[str, str]] = []
    if node.op_type == "Gemm" and alpha != 1.0:
        steps.append(("Mul", _scalar(patch, alpha, slot.element_type)))
    if bias:
        if beta != 1.0:
            bias = patch.node("Mul", [bias, _scalar(patch, beta, slot.element_type)], at=at)
        steps.append(("Add", bias))
    value = multiply([activation, *stored], _output(node, last=not steps), at, **options, **_name(node))
    for index, (operator, operand) in enumerate(steps):
        value = patch.node(operator, [value, operand], _output(node, last=index == len(steps) - 1), at)


def _output(node: NodeProto, *, last: bool) -> str | None:
    return node.output[0] if last else None


def _name(node: NodeProto) -> dict[str, str]:
    return {"name": node.name} if node.name else {}


def _scalar(patch: Patch, value: float, element_type: int) -> str:
    dtype = np.float16 if element_type == TensorProto.FLOAT16 else np.float32
    return patch.constant(np.array(value, dtype=dtype))
