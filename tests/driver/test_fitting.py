"""Closing in on a size that is known only once the codes are."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guidedq.artifacts.allocation import Allocation, SiteAllocation
from guidedq.artifacts.forecast import Forecast
from guidedq.driver import fitting
from guidedq.driver.decision import Decision
from guidedq.driver.evidence import Evidence
from guidedq.driver.fitting import MOST_ATTEMPTS, SLACK, fitted
from guidedq.driver.job import Job

STEP = 7
"""Sizes by which allocations differ."""


FORECAST = Forecast(
    kl=0.1, kl_low=0.1, kl_high=0.1, loss_increase=0.1, loss_increase_low=0.1, loss_increase_high=0.1, raw_kl=0.1
)


def decision(counted: int) -> Decision:
    site = SiteAllocation(formats=(), choice=torch.tensor([counted]), bytes=counted, distortion=0.0)
    allocation = Allocation(sites={"site": site}, base_bytes=0)
    return Decision(allocation=allocation, bytes=counted, raw=(0.1,), forecast=FORECAST, probes=())


def run(
    start: int, limit: int, true_size: Callable[[int], int], *, exact: bool = False, slack: float = SLACK
) -> tuple[int | None, list[int]]:
    """The counted bytes of what is found, and the true sizes of what was tried."""
    asked: list[int] = []

    def size_of(attempt: Decision) -> int:
        asked.append(true_size(attempt.allocation.bytes))
        return asked[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fitting, "decide", lambda job, evidence, probes, aims: [decision(aim // STEP * STEP) for aim in aims]
        )
        evidence = Mock(spec=Evidence, exact=exact)
        found = fitted(Mock(spec=Job), evidence, decision(start), limit, size_of, slack)
    return None if found is None else found.allocation.bytes, asked


@given(st.floats(0.98, 1.02), st.integers(-300, 300), st.integers(50_000, 200_000))
def test_what_is_found_fits_and_nearly_fills_the_limit(ratio: float, offset: int, limit: int) -> None:
    found, asked = run(limit, limit, lambda counted: round(ratio * counted) + offset)
    assert found is not None
    size = round(ratio * found) + offset
    assert (1 - SLACK) * limit <= size <= limit
    assert len(asked) <= MOST_ATTEMPTS


def test_a_first_attempt_that_fits_is_the_last() -> None:
    found, asked = run(99_900, 100_000, lambda counted: counted)
    assert found == 99_900
    assert asked == [99_900]


def test_more_may_be_left_unused_where_that_is_allowed() -> None:
    assert run(99_200, 100_000, lambda counted: counted, slack=0.01)[1] == [99_200]
    assert len(run(99_200, 100_000, lambda counted: counted)[1]) > 1


def test_exact_sizes_are_tried_once() -> None:
    assert run(90_000, 100_000, lambda counted: counted, exact=True)[1] == [90_000]
    assert run(110_000, 100_000, lambda counted: counted, exact=True)[0] is None


def test_nothing_is_found_where_every_file_is_too_large() -> None:
    assert run(100_000, 100_000, lambda counted: 100_001)[0] is None
