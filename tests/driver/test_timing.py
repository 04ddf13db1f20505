"""What a model will take, and what a second is worth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from guidedq.artifacts.allocation import Allocation, SiteAllocation
from guidedq.artifacts.curves import SiteCurve
from guidedq.driver.timing import SiteSeconds, Timing, unpriced
from guidedq.quant.formats import AffineFormat

FORMATS = tuple(AffineFormat(bits=bits, group_size=32) for bits in (2, 4, 8))
SITE = SiteSeconds(original=10.0, formats=(1.0, 2.0, 4.0), integer=0.5, mixed=3.0)
TIMING = Timing(sites={"w": SITE}, places={"x": 0.25}, whole=16.0, threads=1, source="test")


def allocation(*choice: int) -> Allocation:
    site = SiteAllocation(formats=FORMATS, choice=torch.tensor(choice), bytes=1, distortion=99.0)
    return Allocation(sites={"w": site}, base_bytes=0)


def curve() -> SiteCurve:
    distortion = torch.tensor([[8.0, 4.0, 2.0], [80.0, 40.0, 20.0]])
    return SiteCurve(
        name="w",
        formats=FORMATS,
        distortion=distortion,
        row_noise=torch.zeros(2),
        entropy_bytes=torch.zeros(3),
        projections=None,
    )


def test_what_no_choice_changes_is_the_rest():
    assert TIMING.rest == 6.0
    assert replace(TIMING, whole=3.0).rest == 0.0


def test_rows_take_their_share_of_their_format_and_mixing_its_own_time():
    assert TIMING.seconds(allocation(1, 1)) == 6.0 + 2.0
    assert TIMING.seconds(allocation(0, 2)) == 6.0 + 0.5 * 1.0 + 0.5 * 4.0 + 3.0
    integers = replace(TIMING, integers=frozenset({"w"}), rounded=("x", "one that takes no time"))
    assert integers.seconds(allocation(0, 2)) == 6.0 + 0.5 + 0.25


def test_a_price_adds_what_rows_take_longer_than_in_their_fastest_format():
    (priced,) = replace(TIMING, price=10.0).priced({"w": curve()}).values()
    assert torch.equal(priced.distortion - curve().distortion, torch.tensor([[0.0, 5.0, 15.0]]).expand(2, 3))
    (free,) = TIMING.priced({"w": curve()}).values()
    assert torch.equal(free.distortion, curve().distortion)
    (integer,) = replace(TIMING, price=10.0, integers=frozenset({"w"})).priced({"w": curve()}).values()
    assert torch.equal(integer.distortion, curve().distortion)


def test_an_allocation_is_told_by_what_it_loses_and_not_by_its_price():
    assert unpriced(allocation(0, 2), {"w": curve()}).distortion == pytest.approx(28.0)
