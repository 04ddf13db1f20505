"""Bit streams against their definition."""

from __future__ import annotations

import torch
from hypothesis import given, settings, strategies

from guidedq.quant.bit_stream import pack_codes, unpack_codes
from guidedq.quant.byte_counts import packed_width

shapes = strategies.tuples(strategies.integers(0, 4), strategies.integers(1, 40))


def defined_stream(codes: list[int], bits: int) -> list[int]:
    """One row's bytes by the definition: one big integer, code `i` shifted to bit `i * bits`."""
    whole = sum(code << place * bits for place, code in enumerate(codes))
    return list(whole.to_bytes(-(-len(codes) * bits // 8), "little"))


def random_codes(shape: tuple[int, int], bits: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)


@given(shapes, strategies.integers(1, 8), strategies.integers(0, 2**31))
def test_unpacking_undoes_packing(shape, bits, seed):
    codes = random_codes(shape, bits, seed)
    packed = pack_codes(codes, bits)
    assert packed.shape == (shape[0], packed_width(shape[1], bits))
    assert torch.equal(unpack_codes(packed, bits, shape[1]), codes)


@given(shapes, strategies.integers(1, 8), strategies.integers(0, 2**31))
def test_every_row_is_the_stream_that_the_docstring_defines(shape, bits, seed):
    codes = random_codes(shape, bits, seed)
    assert pack_codes(codes, bits).tolist() == [defined_stream(row, bits) for row in codes.tolist()]


@given(strategies.integers(1, 30), strategies.integers(1, 7))
def test_bits_above_the_width_are_dropped_and_reach_no_neighbour(columns, bits):
    assert torch.equal(
        pack_codes(torch.full((2, columns), 255, dtype=torch.uint8), bits),
        pack_codes(torch.full((2, columns), 2**bits - 1, dtype=torch.uint8), bits),
    )


@settings(max_examples=20)
@given(strategies.integers(1, 8))
def test_packing_writes_into_nothing_that_it_was_given(bits):
    codes = random_codes((3, 21), bits, 0)
    before = codes.clone()
    packed = pack_codes(codes, bits)
    kept = packed.clone()
    unpack_codes(packed, bits, 21).fill_(0)
    packed.clone().fill_(0)
    assert torch.equal(codes, before)
    assert torch.equal(packed, kept)


def test_a_view_of_other_rows_packs_as_its_copy():
    codes = random_codes((10, 37), 5, 3)
    assert torch.equal(pack_codes(codes[::2, 1:], 5), pack_codes(codes[::2, 1:].clone(), 5))
