"""Codes of 1 to 8 bits in bytes: little-endian bit streams, one per row, each row padded to a byte.

Eight codes of `bits` bits fill `bits` bytes, which fit into one 64-bit word. Three steps of shift and mask move the
eight codes of a word from its lowest bits into its eight bytes, or back: fours of codes into halves of the word, then
pairs into quarters, then single codes. So any width takes the same dozen operations, over all words at once (some 700
MB of codes a second on one core), on whatever device the tensors are.
"""

from __future__ import annotations

from jaxtyping import Int64, UInt8
from torch import Tensor, int64, uint8
from torch.nn.functional import pad

from guidedq.quant.byte_counts import packed_width

_CODES = 8
"""Codes in a word, and bytes of a word."""


def pack_codes(codes: UInt8[Tensor, "out in"], bits: int) -> UInt8[Tensor, "out bytes"]:
    """Write each row's codes one after another, least significant bit first.

    Code `i` of a row takes bits `i * bits` to `(i + 1) * bits - 1` of the row's stream; what is left of the last byte
    is zero. Codes must be below `2 ** bits`; higher bits are dropped.
    """
    rows, columns = codes.shape
    if bits == 8:
        return codes.clone()
    if not rows:
        return codes.new_empty(0, packed_width(columns, bits))
    words = -(-columns // _CODES)
    spread = pad(codes & (2**bits - 1), (0, words * _CODES - columns)).reshape(rows * words, _CODES)
    packed = _gather(spread.view(int64), bits).view(uint8)[:, :bits]
    return packed.reshape(rows, words * bits)[:, : packed_width(columns, bits)].contiguous()


def unpack_codes(packed: UInt8[Tensor, "out bytes"], bits: int, columns: int) -> UInt8[Tensor, "out in"]:
    """Read `columns` codes of `bits` bits from each row, the inverse of `pack_codes`."""
    rows = packed.shape[0]
    if bits == 8:
        return packed[:, :columns].clone()
    if not rows:
        return packed.new_empty(0, columns)
    words = -(-columns // _CODES)
    whole = pad(packed, (0, words * bits - packed.shape[1])).reshape(rows * words, bits)
    spread = _spread(pad(whole, (0, _CODES - bits)).view(int64), bits).view(uint8)
    return spread.view(rows, words * _CODES)[:, :columns].contiguous()


def _spread(words: Int64[Tensor, "word 1"], bits: int) -> Int64[Tensor, "word 1"]:
    """Move code `i` from bit `i * bits` to bit `i * 8`. No step reaches the sign bit, because `bits` is at most 7."""
    for codes in (4, 2, 1):
        low = _lanes(codes * bits, codes * 16)
        high = (words << codes * (8 - bits)).bitwise_and_(low << codes * 8)
        words = words.bitwise_and(low).bitwise_or_(high)
    return words


def _gather(words: Int64[Tensor, "word 1"], bits: int) -> Int64[Tensor, "word 1"]:
    """Move code `i` from bit `i * 8` to bit `i * bits`, the steps of `_spread` backwards."""
    for codes in (1, 2, 4):
        low = _lanes(codes * bits, codes * 16)
        high = (words >> codes * (8 - bits)).bitwise_and_(low << codes * bits)
        words = words.bitwise_and(low).bitwise_or_(high)
    return words


def _lanes(ones: int, period: int) -> int:
    """A 64-bit mask with the lowest `ones` bits of every `period` bits set."""
    return sum((2**ones - 1) << start for start in range(0, 64, period))
