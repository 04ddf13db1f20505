import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sample_reports import UNIT, plan_points, precisions, sample_report, schedules, sites

from guidedq.artifacts.forecast import Forecast
from guidedq.errors import OutputError
from guidedq.report.depth import depth_figure, row_shares
from guidedq.report.drawing import check_picture, inline_svg, save_figure
from guidedq.report.knee import knee
from guidedq.report.parts import parts_table
from guidedq.report.plots import (
    comparison_figure,
    curve_figure,
    parts_figure,
    plan_figure,
    precisions_figure,
    promise_figure,
    schedules_figure,
)

SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", sorted(SIGNATURES))
def test_a_picture_is_of_the_kind_that_its_suffix_says(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"plan{suffix}"
    save_figure(plan_figure(plan_points(), "tiny", UNIT), path)
    assert path.read_bytes().startswith(SIGNATURES[suffix])


@pytest.mark.parametrize("name", ["plan.xyz", "plan", "missing/plan.png"])
def test_a_picture_that_cannot_be_written_is_refused_beforehand(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="plan"):
        check_picture(tmp_path / name)


def test_losses_are_on_logarithmic_axes_and_points_lie_where_the_numbers_say() -> None:
    report = sample_report()
    axes = curve_figure(report).axes[0]
    assert axes.get_yscale() == "log"
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["KL forecast"].get_xdata()) == [3.0, 4.0, 6.0]
    assert list(lines["KL forecast"].get_ydata()) == [point.forecast.kl for point in report.curve]
    assert list(lines["this file, KL measured"].get_ydata()) == [report.measured.kl]
    assert list(lines["this file, loss measured"].get_ydata()) == [report.measured.loss_increase]
    assert list(lines["probes, KL measured"].get_ydata()) == [0.06]


def whiskers(container: Any, axis: int) -> list[tuple[float, float]]:
    """The ends of error bars along an axis."""
    (bars,) = container.lines[2]
    return [tuple(segment[:, axis]) for segment in bars.get_segments()]


def test_the_loss_increase_has_a_curve_with_its_interval_in_reports_and_plans() -> None:
    report = sample_report()
    forecasts = [point.forecast for point in report.curve]
    expected = [pytest.approx((one.loss_increase_low, one.loss_increase_high)) for one in forecasts]
    for figure in (curve_figure(report), plan_figure(report.curve, "tiny", UNIT)):
        (drawn,) = figure.axes[0].containers
        assert drawn.get_label() == "loss increase, 90% interval"
        assert list(drawn.lines[0].get_ydata()) == [one.loss_increase for one in forecasts]
        assert whiskers(drawn, 1) == expected


def test_without_labels_the_loss_increase_is_the_divergence_and_is_not_drawn_twice() -> None:
    def unlabelled(promise: Forecast) -> Forecast:
        rises = {"loss_increase_low": promise.kl_low, "loss_increase_high": promise.kl_high}
        return replace(promise, loss_increase=promise.kl, **rises)

    report = sample_report()
    curve = tuple(replace(point, forecast=unlabelled(point.forecast)) for point in report.curve)
    measured = replace(report.measured, loss_after=report.measured.loss_before + report.measured.kl)
    report = replace(report, curve=curve, forecast=unlabelled(report.forecast), measured=measured)
    assert curve_figure(report).axes[0].containers == []
    assert "loss increase" not in curve_figure(report).axes[0].get_ylabel()
    assert len(promise_figure(report).axes[0].containers) == 1


def test_an_interval_that_reaches_zero_does_not_stretch_the_axis() -> None:
    def reaching(promise: Forecast) -> Forecast:
        return replace(promise, loss_increase_low=-0.001)

    points = tuple(replace(point, forecast=reaching(point.forecast)) for point in plan_points())
    low, _ = plan_figure(points, "tiny", UNIT).axes[0].get_ylim()
    assert low > 0.1 * points[-1].forecast.kl_low


def test_the_knee_is_marked_in_reports_and_plans_alike() -> None:
    report = sample_report()
    bend = knee(report.curve)
    assert bend is not None
    for figure in (curve_figure(report), plan_figure(report.curve, "tiny", UNIT)):
        (marked,) = [line for line in figure.axes[0].get_lines() if str(line.get_label()).startswith("knee")]
        assert marked.get_label() == f"knee, {bend.asked}"
        assert (marked.get_xdata()[0], marked.get_ydata()[0]) == (bend.bits_per_weight, bend.forecast.kl)


def test_parts_are_drawn_as_shares_of_the_file_budget_by_budget() -> None:
    points = plan_points()
    for axes in (parts_figure(points).axes[0], plan_figure(points, "tiny", UNIT).axes[1]):
        widths = [round(patch.get_width(), 6) for patch in axes.patches]
        assert widths == [round(part.bytes / point.bytes, 6) for point in points for part in point.parts]
        texts = [text.get_text() for text in axes.texts]
        assert texts == ["2.50", "3.25", "3.50", "4.25", "5.50", "6.25"], "bits per weight of what has weights"
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert labels == ["3bits", "4bits (knee)", "6bits"]
    assert parts_table(points) == (
        ["budget", "embedding", "first third", "rest"],
        [[p.asked, f"{p.bits_per_weight - 0.5:.2f} bits, 30.0%", f"{p.bits_per_weight + 0.25:.2f} bits, 60.0%", "10.0%"]
         for p in points],
    )  # fmt: skip


def test_a_plan_of_an_older_version_has_the_curve_alone() -> None:
    points = tuple(replace(point, parts=()) for point in plan_points())
    assert len(plan_figure(points, "tiny", UNIT).axes) == 1
    assert parts_table(points) == (["budget"], [])


def test_prediction_and_measurement_are_drawn_with_the_interval() -> None:
    report = sample_report()
    divergence, increase = promise_figure(report).axes[0].containers
    promise = report.forecast
    assert whiskers(divergence, 0) == [pytest.approx((promise.kl_low, promise.kl_high))]
    assert whiskers(increase, 0) == [pytest.approx((promise.loss_increase_low, promise.loss_increase_high))]
    assert list(divergence.lines[0].get_ydata()) == [report.measured.kl]
    assert list(increase.lines[0].get_ydata()) == [report.measured.loss_increase]


def test_precisions_lie_over_what_they_read_and_schedules_in_the_order_given() -> None:
    report = sample_report(precisions=precisions(), curve=())
    axes = precisions_figure(report).axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["KL forecast"].get_xdata()) == [3.25, 4.25, 5.25]
    assert list(lines["KL measured"].get_ydata()) == [facts.measured.kl for facts in report.precisions]
    assert [text.get_text() for text in axes.texts] == ["3 bits", "4 bits", "5 bits"]
    bars = promise_figure(report).axes[0].containers[0]
    assert list(bars.lines[0].get_ydata()) == [facts.measured.kl for facts in report.precisions]
    drawn = schedules_figure(schedules(), UNIT).axes[0]
    assert [label.get_text() for label in drawn.get_yticklabels()] == ["constant", "entropy"]
    points = [line for line in drawn.get_lines() if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in points] == [facts.kl for facts in schedules()]
    assert points[0].get_color() != points[1].get_color()


def test_areas_of_the_depth_plot_are_bytes() -> None:
    report = sample_report()
    upper = depth_figure(report, (8.0, 4.0)).axes[0]
    total = sum(site.parameters for site in report.sites)
    areas = []
    for path in upper.collections[0].get_paths():
        corners = path.vertices
        areas.append((corners[2][0] - corners[0][0]) * (corners[1][1] - corners[0][1]) * total)
    assert areas == [pytest.approx(site.bits * site.parameters) for site in report.sites]


def test_row_shares_add_up_and_merge_formats_of_one_width() -> None:
    site = replace(sites()[1], rows={"affine{bits=4 group-size=64}": 3, "affine{bits=4 group-size=32}": 3, "fp16": 2})
    assert row_shares(site) == {4: 0.75, 16: 0.25}


def test_blocks_are_labelled_by_their_number_and_large_sites_by_name() -> None:
    lower = depth_figure(sample_report(), (8.0, 4.0)).axes[1]
    assert [label.get_text() for label in lower.get_xticklabels()] == ["embed", "0", "1", "2"]


def test_many_blocks_get_no_more_labels_than_fit() -> None:
    report = sample_report(sites=sites(blocks=200))
    assert len(depth_figure(report, (4.0, 4.0)).axes[1].get_xticks()) <= 10


def test_what_cannot_be_drawn_on_a_logarithmic_axis_is_left_out() -> None:
    points = [("zero", 3.0, 0.0), ("infinite", 3.0, math.inf), ("good", 3.0, 0.25)]
    axes = comparison_figure(points, "tiny", UNIT).axes[0]
    assert [patch.get_width() for patch in axes.patches] == [0.25]


def test_inline_svg_scales_and_its_ids_carry_the_prefix() -> None:
    text = inline_svg(plan_figure(plan_points(), "tiny", UNIT), "plot", "a description")
    head = text[: text.index(">")]
    assert "viewBox" in head
    assert not re.search(r"\b(width|height)=", head)
    assert 'aria-label="a description"' in head
    assert all(identifier.startswith("plot-") for identifier in re.findall(r'\bid="([^"]*)"', text))


def test_labels_never_run_into_one_another() -> None:
    long = [replace(site, name=f"onnx::Convolution_{number}") for number, site in enumerate(sites(blocks=5))]
    figure = depth_figure(sample_report(sites=tuple(long)), (8.0, 4.0))
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[1].get_xticklabels()]
    assert len(boxes) > 1
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
