"""Sizes as the footprint counts them, and as files have them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidedq.artifacts.forecast import Measurement, Probe
from guidedq.driver.decision import counted_size, stored_size

MEASURED = Measurement(
    kl=0.1,
    loss_before=1.0,
    loss_after=1.1,
    agreement=0.9,
    accuracy_before=None,
    accuracy_after=None,
    units=10,
    kl_by_sample=(0.1,),
    loss_increase_by_sample=(0.1,),
)


def probes(*sizes: tuple[int, int]) -> tuple[Probe, ...]:
    """Probes by their bytes and what was counted."""
    blank = Probe(raw_kl_by_sequence=(), raw_kl=0.1, measured=MEASURED, bytes=1, counted_bytes=1)
    return tuple(replace(blank, bytes=stored, counted_bytes=counted) for stored, counted in sizes)


@st.composite
def apart(draw: st.DrawFn) -> tuple[Probe, ...]:
    """Probes a quarter apart or more, whose counts are off by a percent at most."""
    sizes = [draw(st.integers(10**4, 10**9))]
    for growth in draw(st.lists(st.floats(1.25, 3.0), max_size=2)):
        sizes.append(round(growth * sizes[-1]))
    return probes(*((size, round(size * draw(st.floats(0.99, 1.01)))) for size in sizes))


def test_at_the_probes_the_sizes_are_theirs() -> None:
    known = probes((1000, 1010), (2000, 1990), (4000, 4000))
    assert [stored_size(known, counted) for counted in (1010, 1990, 4000)] == [1000, 2000, 4000]
    for stored, counted in ((1000, 1010), (2000, 1990), (4000, 4000)):
        assert counted_size(known, stored) == pytest.approx(counted, abs=1)


def test_beyond_the_probes_the_ratio_of_the_nearest_holds() -> None:
    known = probes((1000, 1100), (2000, 2000))
    assert counted_size(known, 500) == pytest.approx(550, abs=1)
    assert stored_size(known, 550) == 500
    assert counted_size(known, 9000) == stored_size(known, 9000) == 9000


@given(st.lists(st.integers(1000, 10**9), min_size=1, max_size=3, unique=True), st.integers(1, 2 * 10**9))
def test_where_counts_are_exact_every_size_is_itself(sizes: list[int], asked: int) -> None:
    known = probes(*((size, size) for size in sorted(sizes)))
    assert counted_size(known, asked) == stored_size(known, asked) == asked


@given(apart(), st.integers(10**4, 10**9))
def test_one_is_nearly_the_inverse_of_the_other(known: tuple[Probe, ...], asked: int) -> None:
    assert stored_size(known, counted_size(known, asked)) == pytest.approx(asked, rel=5e-4, abs=2)
