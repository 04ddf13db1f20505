"""Codes as streams of Huffman codes: deflate without its search for repetitions, which every Python can read.

A stream holds a matrix of codes column after column, columns of like statistics side by side. Deflate makes a new table
every few thousand codes, so the tables follow the statistics, and nothing but the stream need be stored. It decodes at
some 300 million codes a second on one core.
"""

from __future__ import annotations

import zlib

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from guidedq.errors import FormatError
from guidedq.quant.formats import EntropyFormat
from guidedq.quant.rice import rice_bits, rice_parameter

RAW = -15
"""Window bits of a deflate stream without header and checksum; the artifact has checksums of its own."""
MEMORY_LEVELS = (5, 7, 9)
"""Tried in turn: codes between two tables are 2 ** (level + 6)."""
EFFORT = 6


def column_order(exponents: UInt8[Tensor, "in"]) -> Int64[Tensor, "in"]:
    """Columns by their scales: those of small steps, whose codes are large, first."""
    return exponents.argsort(stable=True)


def encode_codes(codes: UInt8[Tensor, "n in"], order: Int64[Tensor, "in"], *, thorough: bool = True) -> bytes:
    """The shortest stream that deflate finds, columns in the given order; the first it finds unless `thorough`."""
    symbols = codes.index_select(1, order).t().contiguous().numpy().data
    streams: list[bytes] = []
    for level in MEMORY_LEVELS if thorough else MEMORY_LEVELS[1:2]:
        packer = zlib.compressobj(EFFORT, zlib.DEFLATED, RAW, level, zlib.Z_HUFFMAN_ONLY)
        streams.append(packer.compress(symbols) + packer.flush())
    return min(streams, key=len)


def stream_bytes(
    codes: UInt8[Tensor, "n in"], format: EntropyFormat, exponents: UInt8[Tensor, "in"], *, thorough: bool
) -> int:
    """Bytes of the stream of these codes."""
    if format.code == "rice":
        return -(-rice_bits(codes, rice_parameter(codes)) // 8)
    return len(encode_codes(codes, column_order(exponents), thorough=thorough))


def decode_codes(stream: bytes, rows: int, order: Int64[Tensor, "in"]) -> UInt8[Tensor, "n in"]:
    """Read what `encode_codes` wrote; never more than the expected number of codes is unpacked.

    Raises:
        FormatError: the stream is damaged, or does not hold exactly so many codes.
    """
    expected = rows * len(order)
    unpacker = zlib.decompressobj(RAW)
    try:
        symbols = unpacker.decompress(stream, expected + 1)
    except zlib.error as error:
        raise FormatError(f"a stream of codes that cannot be read: {error}") from error
    if len(symbols) != expected or not unpacker.eof or unpacker.unused_data:
        raise FormatError(f"a stream of {expected} codes that has more or fewer")
    codes = torch.empty(rows, len(order), dtype=torch.uint8)
    if expected:
        codes[:, order] = torch.frombuffer(bytearray(symbols), dtype=torch.uint8).view(len(order), rows).t()
    return codes
