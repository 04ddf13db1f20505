"""Read and check a safetensors header without reading the weights.

The format: 8 bytes little-endian length, a JSON object from names to dtype, shape and byte range, then the bytes.
https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, final

from guidedq.errors import ModelError

LENGTH_BYTES = 8
LARGEST_HEADER_BYTES = 100_000_000
"""The limit that the safetensors library itself sets."""
DTYPE_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
FLOAT_DTYPES = frozenset({"F16", "BF16", "F32", "F64"})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One entry of a header: dtype as safetensors spells it, and shape."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> Mapping[str, StoredTensor]:
    """The tensors that a safetensors file says it holds, after checking that the file is whole.

    Raises:
        ModelError: the file is no safetensors file, or is shorter or longer than its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES or length > min(size - LENGTH_BYTES, LARGEST_HEADER_BYTES):
            raise ModelError(f"{path}: truncated or no safetensors file ({size} bytes do not hold a header). {_ADVICE}")
        raw = file.read(length)
    try:
        entries: dict[str, Any] = json.loads(raw)
        stored = {name: _entry(entry) for name, entry in entries.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: the safetensors header cannot be read ({error}). {_ADVICE}") from error
    end = 0
    for name, (tensor, (start, stop)) in sorted(stored.items(), key=lambda item: item[1][1]):
        needed = prod(tensor.shape) * DTYPE_BYTES[tensor.dtype]
        if start != end or stop - start != needed:
            raise ModelError(f"{path}: {name} should take {needed} bytes, bytes {start} to {stop} are said. {_ADVICE}")
        end = stop
    expected = LENGTH_BYTES + length + end
    if size != expected:
        raise ModelError(f"{path}: the header says {expected} bytes, the file has {size}. {_ADVICE}")
    return {name: tensor for name, (tensor, _) in stored.items()}


_ADVICE = "Copy or download it again."


def _entry(entry: Mapping[str, Any]) -> tuple[StoredTensor, tuple[int, int]]:
    dtype, shape, (start, stop) = str(entry["dtype"]), entry["shape"], entry["data_offsets"]
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"unknown dtype {dtype}")
    return StoredTensor(dtype=dtype, shape=tuple(int(size) for size in shape)), (int(start), int(stop))
