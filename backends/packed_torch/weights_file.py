"""The weights file: a safetensors container whose size is known before its packed weights are.

Eight bytes (length of the header), the header (JSON), the data. The header is padded with spaces, as the format allows,
to the length that it would have if every site were as large as it can be; so the file's size is that of its tensors
plus a constant, and packed weights can be appended one by one and the header written last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from guidedq.artifacts.packed_weight import pack_weight
from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.errors import BackendError
from guidedq.ir.graph import Site
from guidedq.quant.formats import FloatFormat
from guidedq.quant.packing import (
    MAXIMUM_SEGMENTS,
    PREFIX_BYTES,
    SEGMENT_HEADER,
    STREAM_HEADER,
    columns_bytes,
    index_bytes,
)

from .contents import StoredTensor

LENGTH_BYTES = 8
STREAM_OVERHEAD_BYTES = 16
"""What a stream of a few codes takes beyond a byte each."""
ALIGNMENT = 8
"""The data begin at a multiple of the widest dtype's size, as readers that map the file expect."""
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def largest_site_bytes(site: Site) -> int:
    """The most bytes that a site's blob may take: every row in 16 bits, and every segment's header."""
    per_segment = SEGMENT_HEADER.size + STREAM_HEADER.size + STREAM_OVERHEAD_BYTES
    header = PREFIX_BYTES + per_segment * MAXIMUM_SEGMENTS + index_bytes(site.rows, MAXIMUM_SEGMENTS)
    header += columns_bytes(site.columns)
    return header + site.rows * FloatFormat().row_bytes(site.columns)


def base_bytes(tensors: Sequence[StoredTensor], sites: Sequence[Site]) -> int:
    """Bytes of the file without the sites' blobs."""
    return LENGTH_BYTES + _header_bytes(tensors, sites) + sum(tensor.bytes for tensor in tensors)


def write_weights_file(
    path: Path,
    tensors: Sequence[StoredTensor],
    state: Mapping[str, Tensor],
    sites: Sequence[Site],
    weights: Iterable[QuantizedWeight],
) -> Mapping[str, int]:
    """Write the file, holding one packed weight at a time; gives the bytes of each site.

    Args:
        path: The file to make.
        tensors: Those stored as they are.
        state: Their values, by name.
        sites: The packed ones, of which `weights` brings each once, in any order.
        weights: Taken one by one.

    Raises:
        BackendError: `weights` are not the sites, or one is larger than 16 bits a weight.
    """
    room = _header_bytes(tensors, sites)
    entries: dict[str, object] = {}
    with path.open("wb") as file:
        file.write(bytes(LENGTH_BYTES) + b" " * room)
        place = 0
        for tensor in tensors:
            values = state[tensor.name].detach().to("cpu", tensor.dtype).contiguous()
            entries[tensor.name] = _entry(tensor.dtype, tensor.shape, place, place + tensor.bytes)
            _append(file, values)
            place += tensor.bytes
        waiting = {site.name: site for site in sites}
        sizes: dict[str, int] = {}
        for weight in weights:
            blob = _packed(weight, waiting.pop(weight.name, None))
            entries[weight.name] = _entry(blob.dtype, (len(blob),), place, place + len(blob))
            _append(file, blob)
            place += len(blob)
            sizes[weight.name] = len(blob)
        if waiting:
            raise BackendError(f"no quantized weight came for {', '.join(waiting)}.")
        header = _json(entries)
        assert len(header) <= room, "the header outgrew its bound"
        file.seek(0)
        file.write(room.to_bytes(LENGTH_BYTES, "little") + header)
    return sizes


def _packed(weight: QuantizedWeight, site: Site | None) -> Tensor:
    if site is None:
        raise BackendError(f"{weight.name} is no site that was to be packed, or came twice.")
    if weight.shape != (site.rows, site.columns):
        raise BackendError(f"{weight.name}: expected a weight of {site.rows} x {site.columns}, found {weight.shape}.")
    blob = pack_weight(weight)
    if len(blob) > largest_site_bytes(site):
        raise BackendError(f"{weight.name}: its formats take more than 16 bits a weight. Leave it in fp16 or bf16.")
    return blob


def _header_bytes(tensors: Sequence[StoredTensor], sites: Sequence[Site]) -> int:
    """Length of the padded header: every number as long as the longest that can stand in its place."""
    largest = {site.name: largest_site_bytes(site) for site in sites}
    end = sum(tensor.bytes for tensor in tensors) + sum(largest.values())
    entries = {tensor.name: _entry(tensor.dtype, tensor.shape, end, end) for tensor in tensors}
    entries |= {name: _entry(torch.uint8, (size,), end, end) for name, size in largest.items()}
    return -(-len(_json(entries)) // ALIGNMENT) * ALIGNMENT


def _entry(dtype: torch.dtype, shape: tuple[int, ...], start: int, stop: int) -> dict[str, object]:
    if dtype not in DTYPE_NAMES:
        raise BackendError(f"tensors of {dtype} cannot be stored in safetensors. Convert them in the checkpoint.")
    return {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, stop]}


def _json(entries: Mapping[str, object]) -> bytes:
    return json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()


def _append(file: BinaryIO, values: Tensor) -> None:
    if values.numel():
        file.write(values.reshape(-1).view(torch.uint8).numpy().data)
