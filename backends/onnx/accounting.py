"""Exact byte counts: what the file will take for any allocation, before there is a single code.

Every count comes from the writers themselves, run without data. Names have one length, and lengths are counted as if
every segment held all rows, so a count is never below the truth, and above it by a few bytes a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, repeat

import numpy as np
from onnx import ModelProto, helper

from guidedq.artifacts.footprint import Footprint, SiteFootprint, code_bytes_of
from guidedq.quant.formats import EntropyFormat, FloatFormat, Format

from .patch import Patch, Shared, StoredTensor, field_bytes, name_length
from .settings import Settings
from .site_writer import MOST_SEGMENTS, can_hold, rows_of, write_site
from .skeleton import Skeleton, Slot
from .streams import ORDER_BITS
from .unpacking import DOMAIN, RUNTIME_DOMAIN, library

MIXED_PARAMETERS = 2**16
"""Smaller sites have one format for all rows: saying which row has which takes some hundred bytes of graph."""
MIXED_MODEL_PARAMETERS = 2**20
"""So have all sites of a smaller model: functions and constants for mixing are counted whether they are used or not,
some 3 kB, which is a fortieth of a bit per weight here."""
NAMES_PER_SITE = 40
"""No writer makes more names than this for one site."""
PADDING_BYTES = 3
"""Each of up to three parts of a segment is padded to a byte."""
GROWTH_BYTES = 16
"""The lengths of the graph and of the lists of versions, which grow when things are put into them."""


def names_length(skeleton: Skeleton) -> int:
    """The length of the names that are put into the skeleton."""
    return name_length(NAMES_PER_SITE * (len(skeleton.slots) + 2), skeleton.names)


def count_footprint(skeleton: Skeleton, offered: Mapping[str, Sequence[Format]], settings: Settings) -> Footprint:
    """The footprint of a model.

    Args:
        skeleton: Its graph.
        offered: What is asked for by site: affine formats, of which it gets those that it can hold, then a float.
        settings: How the model is written.
    """
    mixable = (
        settings.style == "native"
        and sum(slot.site.parameters for slot in skeleton.slots.values()) >= MIXED_MODEL_PARAMETERS
    )
    shared = Shared(names=repeat("x" * names_length(skeleton)))
    counted: dict[object, SiteFootprint] = {}
    sites: dict[str, SiteFootprint] = {}
    for name, slot in skeleton.slots.items():
        held = tuple(f for f in offered[name] if can_hold(slot, f, settings))
        alike = (held, _what_counts(slot))
        if alike not in counted:
            coded = any(isinstance(format, EntropyFormat) for format in held)
            large = (
                mixable
                and not coded
                and min(slot.site.parameters // MIXED_PARAMETERS, slot.site.rows // 2, len(held) // 3) > 0
            )
            count = _count_mixable_site if large else _count_uniform_site
            counted[alike] = count(shared, slot, held, settings)
        sites[name] = counted[alike]
    removed = sum(slot.removed_bytes for slot in skeleton.slots.values())
    fixed = stored_bytes(skeleton.proto, external=settings.external)
    return Footprint(base_bytes=fixed - removed + _shared_bytes(shared, settings) + GROWTH_BYTES, sites=sites)


def stored_bytes(proto: ModelProto, *, external: bool) -> int:
    """Bytes of a model in memory once it is written, with large tensors in a data file or not."""
    total = proto.ByteSize()
    for tensor in proto.graph.initializer if external else ():
        stored = StoredTensor(
            name=tensor.name,
            dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type),
            shape=tuple(tensor.dims),
            data=lambda: np.zeros(0),
        )
        total += stored.bytes(external=True) - field_bytes(tensor.ByteSize())
    return total


def _shared_bytes(shared: Shared, settings: Settings) -> int:
    """Bytes of constants, functions and their domains."""
    constants = sum(field_bytes(tensor.ByteSize()) for tensor in shared.constants.values())
    functions = library(
        shared.functions,
        opset=settings.opset,
        element_type=settings.element_type,
        accuracy_level=settings.accuracy_level,
    )
    # the field of functions has a two-byte tag
    bodies = sum(field_bytes(function.ByteSize()) + 1 for function in functions)
    domains = sum(field_bytes(field_bytes(len(domain)) + 2) for domain in (DOMAIN, RUNTIME_DOMAIN))
    return constants + bodies + domains


def _count_uniform_site(shared: Shared, slot: Slot, formats: tuple[Format, ...], settings: Settings) -> SiteFootprint:
    """A site whose rows all have one format: exact; what rows take beyond whole bytes is counted with the segment."""
    rows = slot.site.rows
    row_bytes = [_eight_rows(shared, slot, format, settings) // 8 for format in formats]
    totals = [_count(shared, slot, [format], settings, rows=rows)[0] for format in formats]
    rest = [total - rows * each for total, each in zip(totals, row_bytes, strict=True)]
    return SiteFootprint(
        formats=formats,
        row_bytes=tuple(row_bytes),
        segment_bytes=tuple(rest),
        site_bytes=0,
        code_bytes=code_bytes_of(formats, slot.site.columns),
    )


def _count_mixable_site(shared: Shared, slot: Slot, formats: tuple[Format, ...], settings: Settings) -> SiteFootprint:
    """A site whose rows may differ: the bytes of a row are rounded up."""
    row_bytes = [-(-_eight_rows(shared, slot, format, settings) // 8) for format in formats]
    alone = [_overhead(shared, slot, [format], settings) + PADDING_BYTES for format in formats]
    others = _companions(formats)
    mixed = [_count_segment(shared, slot, format, others, settings) for format in formats]
    common = max(0, min(whole - part for whole, part in zip(alone, mixed, strict=True)))
    segment_bytes = [whole - common for whole in alone]
    excess = sorted((part - own for part, own in zip(mixed, segment_bytes, strict=True)), reverse=True)
    worst = max(list(accumulate(excess[:MOST_SEGMENTS]))[1:])
    frame = _count_frame(shared, slot, dict(zip(formats, mixed, strict=True)), others, settings)
    return SiteFootprint(
        formats=formats,
        row_bytes=tuple(row_bytes),
        segment_bytes=tuple(segment_bytes),
        site_bytes=common,
        mixed_row_bits=ORDER_BITS,
        mixed_bytes=max(0, frame + worst - common),
        segments=MOST_SEGMENTS,
    )


def _eight_rows(shared: Shared, slot: Slot, format: Format, settings: Settings) -> int:
    """Bytes of the values of eight rows: their streams end with a byte, whatever the width."""
    if isinstance(format, FloatFormat):
        return 8 * format.row_bytes(slot.site.columns)
    return _count(shared, slot, [format], settings, rows=8)[1]


def _count(shared: Shared, slot: Slot, formats: Sequence[Format], settings: Settings, *, rows: int) -> tuple[int, int]:
    """Bytes of a site with so many rows in each of `formats`, and how many of them are values."""
    patch = Patch(shared=shared)
    replaced = write_site(patch, slot, rows_of(formats, rows), settings)
    kept = 0 if replaced else slot.removed_bytes
    return patch.bytes(external=settings.external) + kept, patch.payload_bytes


def _overhead(shared: Shared, slot: Slot, formats: Sequence[Format], settings: Settings) -> int:
    """Bytes of a site besides values, counted as if each of its segments held all rows."""
    total, payload = _count(shared, slot, formats, settings, rows=slot.site.rows)
    return total - payload


def _count_segment(shared: Shared, slot: Slot, format: Format, others: Sequence[Format], settings: Settings) -> int:
    """Bytes that a further segment in `format` adds, besides its values, beside any other format."""
    return (
        max(
            _overhead(shared, slot, [other, other, format], settings)
            - _overhead(shared, slot, [other, other], settings)
            for other in others
        )
        + PADDING_BYTES
    )


def _count_frame(
    shared: Shared, slot: Slot, costs: Mapping[Format, int], others: Sequence[Format], settings: Settings
) -> int:
    """Bytes that a site of several segments takes besides those segments."""
    return max(
        _overhead(shared, slot, [other, format], settings) - costs[other] - costs[format]
        for other in others
        for format in costs
        if format != other
    )


def _companions(formats: Sequence[Format]) -> list[Format]:
    """One format for each way in which the rest of a site can change how a segment is written.

    These are: the narrow and the wide container, and dequantizing at load, which rows in floating point ask for.
    """
    by_way: dict[object, Format] = {}
    for format in formats:
        by_way.setdefault(None if isinstance(format, FloatFormat) else format.bits <= 4, format)
    return list(by_way.values())


def _what_counts(slot: Slot) -> object:
    """Sites that are alike in this take the same bytes."""
    readers = [
        (
            reader.rank,
            reader.node.op_type,
            [len(name) for name in (*reader.node.input, *reader.node.output, reader.node.name)],
            [item.SerializeToString(deterministic=True) for item in reader.node.attribute],
        )
        for reader in slot.readers
    ]
    shape = (slot.site.shape, slot.site.rows, slot.site.storage)
    return (*shape, slot.element_type, slot.removed_bytes, len(slot.name), repr(readers))
