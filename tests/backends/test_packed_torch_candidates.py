"""What the torch backend offers for one site, and in which 16 bits it stores the other tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies

from guidedq.backends.packed_torch.candidates import site_footprint
from guidedq.backends.packed_torch.contents import stored_dtype
from guidedq.backends.packed_torch.weights_file import largest_site_bytes
from guidedq.errors import BackendError
from guidedq.ir.graph import Site, Use, UseKind
from guidedq.quant.formats import AffineFormat, FloatFormat
from guidedq.quant.packing import blob_bytes

WIDTHS = [AffineFormat(bits=bits, group_size=64) for bits in range(2, 9)]
FP16, BF16 = FloatFormat(dtype="fp16"), FloatFormat(dtype="bf16")


def site(rows: int, columns: int) -> Site:
    return Site(name="layer.weight", shape=(rows, columns), uses=(Use(operator="layer", kind=UseKind.LINEAR),))


def offered(values: torch.Tensor, formats: list[AffineFormat]) -> tuple:
    return site_footprint(site(*values.shape), values, formats).formats


def test_an_ordinary_site_gets_every_format_and_fp16():
    assert offered(torch.randn(4, 128), WIDTHS) == (*WIDTHS, FP16)


def test_a_group_no_shorter_than_a_row_is_offered_once():
    formats = [AffineFormat(bits=3, group_size=size) for size in (16, 64, 128, 0)]
    assert offered(torch.randn(4, 64), formats) == (formats[0], formats[1], FP16)


def test_formats_that_save_nothing_are_not_offered():
    narrow = torch.randn(30, 3)  # 3 weights in fp16 take 6 bytes; 8 bits with scale and zero point take 6
    assert offered(narrow, [AffineFormat(bits=8), AffineFormat(bits=4)]) == (AffineFormat(bits=4), FP16)


def test_more_outliers_than_columns_are_not_offered():
    formats = [AffineFormat(bits=2, group_size=0, outliers=outliers) for outliers in (1, 7, 8, 9)]
    assert offered(torch.randn(4, 8), formats) == (formats[0], FP16)


def test_outliers_are_not_offered_where_no_16_bit_index_reaches():
    format = AffineFormat(bits=4, group_size=0, outliers=1)
    assert offered(torch.randn(1, 65536), [format]) == (format, FP16)
    assert offered(torch.randn(1, 65537), [format]) == (FP16,)


@pytest.mark.parametrize("size", [1e7, 3e37])
def test_a_site_beyond_fp16_scales_is_left_in_bf16(size):
    assert offered(size * torch.randn(4, 128), [*WIDTHS, AffineFormat(bits=8, outliers=1)]) == (BF16,)


def test_a_site_below_fp16_scales_is_left_in_a_float():
    assert offered(1e-7 * torch.randn(4, 128), WIDTHS) == (BF16,)


def test_only_widths_whose_scale_fits_are_offered():
    values = torch.linspace(-1e5, 1e5, 128)[None]  # a range of 2e5: 2 bits would need a scale of 66667
    assert offered(values, WIDTHS) == (*WIDTHS[1:], BF16)


def test_a_site_of_zeros_is_offered_every_format():
    assert offered(torch.zeros(2, 128), WIDTHS) == (*WIDTHS, FP16)


def test_a_weight_that_no_16_bits_hold_is_refused_by_name():
    for bad in (float("nan"), 3.4e38):
        with pytest.raises(BackendError, match=r"layer\.weight"):
            offered(torch.tensor([[1.0, bad]]), WIDTHS)


@given(strategies.integers(1, 9), strategies.integers(1, 90), strategies.data())
def test_site_bytes_are_the_blobs_and_never_above_the_headers_bound(rows, columns, data):
    own = site_footprint(site(rows, columns), torch.randn(rows, columns), WIDTHS)
    counts: dict[int, int] = {}
    for _ in range(rows):
        known = sorted(counts)
        numbers = known if len(known) == own.segments else range(len(own.formats))
        chosen = data.draw(strategies.sampled_from(list(numbers)))
        counts[chosen] = counts.get(chosen, 0) + 1
    expected = blob_bytes(columns, [(own.formats[number], count) for number, count in counts.items()])
    assert own.bytes(counts) == expected <= largest_site_bytes(site(rows, columns))


EXACT = {
    "fp16 values": (torch.randn(50).half(), torch.float16),
    "bf16 values too wide for fp16": ((1e6 * torch.randn(50)).bfloat16(), torch.bfloat16),
    "bf16 values too small for fp16": ((1e-6 * torch.randn(50)).bfloat16(), torch.bfloat16),
    "bf16 values whose squares vanish": ((1e-30 * torch.randn(50)).bfloat16(), torch.bfloat16),
    "bf16 values that fp16 holds": (torch.randn(50).bfloat16(), torch.float16),
    "a mask of infinities": (torch.tensor([0.0, float("-inf")]), torch.float16),
}


@pytest.mark.parametrize(("values", "dtype"), EXACT.values(), ids=EXACT.keys())
def test_values_that_16_bits_hold_exactly_stay_exact(values, dtype):
    assert stored_dtype(values.float()) is dtype
    assert torch.equal(values.float().to(dtype).float(), values.float())


def test_what_16_bits_cannot_hold_stays_as_it_is():
    assert stored_dtype(torch.tensor([3.4e38])) is torch.float32
    assert stored_dtype(torch.tensor([float("nan")])) is torch.float32
    assert stored_dtype(torch.tensor([3])) is torch.int64
    assert stored_dtype(torch.tensor([True])) is torch.bool


def test_ordinary_float32_values_become_fp16_and_wide_ones_bf16():
    assert stored_dtype(torch.randn(100)) is torch.float16
    assert stored_dtype(torch.tensor([70000.1, 1.0])) is torch.bfloat16
