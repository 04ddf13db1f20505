"""The knee of curves whose shape is known."""

from __future__ import annotations

from dataclasses import replace

from sample_reports import forecast, plan_points

from guidedq.artifacts.report import PlanPoint
from guidedq.report.knee import knee


def points(*places: tuple[int, float]) -> list[PlanPoint]:
    """Points of these bytes and losses."""
    blank = plan_points()[0]
    return [replace(blank, asked=str(size), bytes=size, forecast=forecast(kl)) for size, kl in places]


def test_it_is_the_corner_of_a_curve_with_one() -> None:
    found = knee(points((100, 9.0), (900, 0.0), (200, 1.0), (500, 0.5)))
    assert found is not None
    assert found.bytes == 200


def test_a_straight_line_and_one_that_bends_the_other_way_have_none() -> None:
    assert knee(points((100, 2.0), (200, 1.0), (300, 0.0))) is None
    assert knee(points((100, 2.0), (200, 1.9), (300, 0.0))) is None


def test_two_sizes_or_what_is_not_finite_make_no_curve() -> None:
    assert knee(points((100, 2.0), (200, 1.0), (200, 1.0))) is None
    assert knee(points((100, float("inf")), (200, 1.0), (300, 0.5))) is None
    assert knee([]) is None
