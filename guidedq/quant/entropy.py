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
MEMORY_LEVELS = (7, 9)
"""Codes between two tables are 2 ** (level + 6). The first is best, but for short streams, where both are tried."""
SHORT_STREAM = 1 << 16
EFFORT = 6
CODES_AT_ONCE = 1 << 20
"""Codes turned over between rows and columns at once."""


def column_order(exponents: UInt8[Tensor, "in"]) -> Int64[Tensor, "in"]:
    """Columns by their scales: those of small steps, whose codes are large, first."""
    return exponents.argsort(stable=True)


def encode_codes(codes: UInt8[Tensor, "n in"], order: Int64[Tensor, "in"], *, thorough: bool = True) -> bytes:
    """The shortest stream that deflate finds, columns in the given order; the first it finds unless `thorough`."""
    levels = MEMORY_LEVELS if thorough and codes.numel() < SHORT_STREAM else MEMORY_LEVELS[:1]
    packers = [zlib.compressobj(EFFORT, zlib.DEFLATED, RAW, level, zlib.Z_HUFFMAN_ONLY) for level in levels]
    streams: list[list[bytes]] = [[] for _ in levels]
    for columns in order.split(_columns_at_once(len(codes))):
        symbols = codes.index_select(1, columns).t().contiguous().numpy().data
        for packer, stream in zip(packers, streams, strict=True):
            stream.append(packer.compress(symbols))
    for packer, stream in zip(packers, streams, strict=True):
        stream.append(packer.flush())
    return b"".join(min(streams, key=lambda parts: sum(map(len, parts))))


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
    unpacker = zlib.decompressobj(RAW)
    codes = torch.empty(rows, len(order), dtype=torch.uint8)
    waiting = stream
    try:
        for columns in order.split(_columns_at_once(rows)):
            symbols = unpacker.decompress(waiting, rows * len(columns))
            waiting = unpacker.unconsumed_tail
            if len(symbols) < rows * len(columns):
                raise FormatError(f"a stream of {codes.numel()} codes that holds fewer")
            codes[:, columns] = torch.frombuffer(bytearray(symbols), dtype=torch.uint8).view(len(columns), rows).t()
        more = unpacker.decompress(waiting, 1)
    except zlib.error as error:
        raise FormatError(f"a stream of codes that cannot be read: {error}") from error
    if more or not unpacker.eof or unpacker.unused_data:
        raise FormatError(f"a stream of {codes.numel()} codes that holds more")
    return codes


def _columns_at_once(rows: int) -> int:
    return max(1, CODES_AT_ONCE // max(rows, 1))
