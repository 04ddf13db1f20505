import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from sample_reports import UNIT, plan_points, precisions, sample_report, schedules, sites

from guidedq.errors import OutputError
from guidedq.report.depth import depth_figure, row_shares
from guidedq.report.drawing import check_picture, inline_svg, save_figure
from guidedq.report.plots import (
    comparison_figure,
    curve_figure,
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
    assert list(lines["forecast"].get_xdata()) == [3.0, 4.0, 6.0]
    assert list(lines["forecast"].get_ydata()) == [point.forecast.kl for point in report.curve]
    assert list(lines["this file, measured"].get_ydata()) == [report.measured.kl]
    assert list(lines["probes, measured"].get_ydata()) == [0.06]


def test_prediction_and_measurement_are_drawn_with_the_interval() -> None:
    report = sample_report()
    axes = promise_figure(report).axes[0]
    (bars,) = axes.containers
    (caps,) = bars.lines[2]
    low, high = caps.get_segments()[0][:, 0]
    assert (low, high) == (pytest.approx(report.forecast.kl_low), pytest.approx(report.forecast.kl_high))


def test_precisions_lie_over_what_they_read_and_schedules_in_the_order_given() -> None:
    report = sample_report(precisions=precisions(), curve=())
    axes = precisions_figure(report).axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["forecast"].get_xdata()) == [3.25, 4.25, 5.25]
    assert list(lines["measured"].get_ydata()) == [facts.measured.kl for facts in report.precisions]
    assert [text.get_text() for text in axes.texts] == ["3 bits", "4 bits", "5 bits"]
    (bars,) = promise_figure(report).axes[0].containers
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
