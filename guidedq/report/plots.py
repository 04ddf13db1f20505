"""The plots of a compile, a plan and a comparison, as matplotlib figures. Losses are on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from guidedq.artifacts.forecast import Forecast
from guidedq.artifacts.report import PlanPoint, Report, ScheduleFacts
from guidedq.report.drawing import Size
from guidedq.report.knee import knee
from guidedq.report.palette import ACCENT, INK, LINES, MEASURED, MUTED, PAPER, VARIANT_COLOURS
from guidedq.report.wording import loss_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_SIZE: Size = (5.0, 3.7)
SMALLEST_LOSS = 1e-12
"""The floor of intervals on logarithmic axes. What is zero, or not finite, cannot be drawn there and is left out."""


def curve_figure(report: Report, size: Size = PLOT_SIZE) -> Figure:
    """Predicted KL against size, with its interval; the probes; the chosen point, forecast and measured."""
    figure, axes = new_figure(size)
    _draw_curve(axes, [(point.bits_per_weight, point.forecast) for point in report.curve])
    probed = [(probe.bits_per_weight, probe.measured_kl) for probe in report.probes if _drawable(probe.measured_kl)]
    if probed:
        bits, losses = zip(*probed, strict=True)
        axes.plot(bits, losses, "o", mfc=PAPER, mec=MEASURED, ms=6, label="probes, measured", zorder=4)
    here = report.size.bits_per_weight
    axes.axvline(here, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    if _drawable(report.forecast.kl):
        axes.plot(
            [here], [report.forecast.kl], "o", color=ACCENT, ms=9, mec=PAPER, zorder=5, label="this file, forecast"
        )
    if _drawable(report.measured.kl):
        axes.plot(
            [here], [report.measured.kl], "D", color=MEASURED, ms=7, mec=PAPER, zorder=6, label="this file, measured"
        )
    _label_losses(axes, report.model.unit)
    return figure


def precisions_figure(report: Report, size: Size = PLOT_SIZE) -> Figure:
    """KL of a nested file at each precision, forecast with its interval and measured, against what it reads."""
    figure, axes = new_figure(size)
    _draw_curve(axes, [(facts.read_bits_per_weight, facts.forecast) for facts in report.precisions])
    drawn = [facts for facts in report.precisions if _drawable(facts.measured.kl)]
    places = [(facts.read_bits_per_weight, facts.measured.kl) for facts in drawn]
    if places:
        axes.plot(*zip(*places, strict=True), "D", color=MEASURED, ms=6, mec=PAPER, zorder=6, label="measured")
    for facts, place in zip(drawn, places, strict=True):
        _note(axes, f"{facts.bits} bits", place)
    _label_losses(axes, report.model.unit)
    axes.set_xlabel("bits per weight that are read")
    return figure


def schedules_figure(schedules: Sequence[ScheduleFacts], unit: str, size: Size = PLOT_SIZE) -> Figure:
    """KL of every schedule that was tried, with its interval, in the order given; the chosen one stands out."""
    figure, axes = new_figure(size)
    drawn = [facts for facts in schedules if _drawable(facts.kl)]
    for place, facts in enumerate(drawn):
        colour = ACCENT if facts.chosen else MUTED
        axes.plot([facts.kl_low, facts.kl_high], [place, place], color=colour, linewidth=1.8)
        axes.plot([facts.kl], [place], "o", color=colour, ms=8 if facts.chosen else 6, mec=PAPER)
    axes.set_yticks(range(len(drawn)), [facts.name for facts in drawn])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"KL to the original, {unit}")
    return figure


def promise_figure(report: Report, size: Size = PLOT_SIZE) -> Figure:
    """Predicted against measured KL: this file at each precision, with intervals; probes, uncalibrated; equality."""
    figure, axes = new_figure(size)
    probed = [(probe.raw_kl, probe.measured_kl) for probe in report.probes]
    probed = [pair for pair in probed if all(map(_drawable, pair))]
    kept = [(facts.forecast, facts.measured.kl) for facts in report.precisions]
    kept = [
        pair for pair in kept or [(report.forecast, report.measured.kl)] if all(map(_drawable, (pair[0].kl, pair[1])))
    ]
    values = [value for pair in probed for value in pair] + [v for promise, loss in kept for v in (promise.kl, loss)]
    if values:
        low, high = min(values) / 2, max(values) * 2
        axes.plot([low, high], [low, high], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), label="exact")
    if probed:
        axes.plot(*zip(*probed, strict=True), "o", mfc=PAPER, mec=MEASURED, ms=6, label="probes, before calibration")
    if kept:
        forecasts, measured = zip(*kept, strict=True)
        below = [max(promise.kl - max(promise.kl_low, SMALLEST_LOSS), 0.0) for promise in forecasts]
        above = [max(min(promise.kl_high, 1e3 * promise.kl) - promise.kl, 0.0) for promise in forecasts]
        label = "each precision, 90% interval" if report.precisions else "this file, 90% interval"
        style: dict[str, Any] = {"fmt": "D", "color": ACCENT, "ms": 7, "mec": PAPER, "capsize": 3}
        axes.errorbar([promise.kl for promise in forecasts], measured, xerr=[below, above], label=label, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"predicted KL, {report.model.unit}")
    axes.set_ylabel(f"measured KL, {report.model.unit}")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    _legend(axes)
    return figure


def plan_figure(points: Sequence[PlanPoint], model: str, unit: str, size: Size = (7.0, 4.4)) -> Figure:
    """The forecast at each budget of a plan, every point labelled, and the knee."""
    figure, axes = new_figure(size)
    _draw_curve(axes, [(point.bits_per_weight, point.forecast) for point in points])
    if (bend := knee(points)) is not None and _drawable(bend.forecast.kl):
        place = [bend.bits_per_weight], [bend.forecast.kl]
        axes.plot(*place, "o", mfc="none", mec=MEASURED, ms=12, label="knee", zorder=5)
    for point in points:
        if _drawable(point.forecast.kl):
            _note(axes, loss_text(point.forecast.kl), (point.bits_per_weight, point.forecast.kl))
    axes.set_title(f"{model}: predicted loss against size", loc="left", color=INK, fontsize=11)
    _label_losses(axes, unit)
    return figure


def comparison_figure(
    points: Sequence[tuple[str, float, float]], model: str, unit: str, size: Size = (7.0, 4.4)
) -> Figure:
    """Measured KL of variants, as bars from best to worst with their sizes.

    Args:
        points: Name, bits per weight and measured KL of each variant, in the order of their colours.
        model: Its name.
        unit: The objective's.
        size: In inches.
    """
    figure, axes = new_figure(size)
    coloured = [(*point, VARIANT_COLOURS[n % len(VARIANT_COLOURS)]) for n, point in enumerate(points)]
    drawn = sorted((point for point in coloured if _drawable(point[2])), key=lambda point: -point[2])
    for place, (name, bits, loss, colour) in enumerate(drawn):
        axes.barh([place], [loss], color=colour, height=0.62)
        text = f" {loss_text(loss)} at {bits:.3f} bits"
        axes.annotate(text, (loss, place), va="center", color=INK, fontsize=9.5, annotation_clip=False)
        axes.annotate(
            f"{name} ", (0, place), xycoords=("axes fraction", "data"), va="center", ha="right", color=INK, fontsize=10
        )
    if drawn:
        axes.set_xlim(0, 1.35 * drawn[0][2])
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"measured KL to the original, {unit} (less is better)")
    axes.set_title(f"{model}: one budget, spent in different ways", loc="left", color=INK, fontsize=11)
    return figure


def new_figure(size: Size, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    """An empty figure in our style: thin frame on two sides, light grid; one axes, or an array of `rows`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="none")
    made: Any = figure.subplots(rows, 1, **options)
    every: list[Any] = [made] if rows == 1 else list(made)
    for axes in every:
        axes.set_facecolor("none")
        axes.grid(visible=True, color=LINES, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", colors=MUTED, labelsize=9, length=0)
        axes.xaxis.label.set_color(MUTED)
        axes.yaxis.label.set_color(MUTED)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(LINES)
    return figure, made


def label_in_full(axes: Axes, across: str, up: str, title: str) -> None:
    """Name both axes and the figure, and show the legend."""
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    _legend(axes)


def plain_ticks(axis: Any) -> None:
    """Label 1, 2 and 5 of every decade where there are few decades, else the decades, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low) if low > 0 else 1.0
    steps = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0, 3.0) if decades < 3.5 else (1.0,)
    axis.set_major_locator(LogLocator(base=10, subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _draw_curve(axes: Axes, points: Sequence[tuple[float, Forecast]]) -> None:
    """Forecasts by bits per weight."""
    drawn = sorted((point for point in points if _drawable(point[1].kl)), key=lambda point: point[0])
    if not drawn:
        return
    bits, forecasts = zip(*drawn, strict=True)
    low = [max(forecast.kl_low, SMALLEST_LOSS) for forecast in forecasts]
    high = [forecast.kl_high if math.isfinite(forecast.kl_high) else forecast.kl for forecast in forecasts]
    axes.fill_between(bits, low, high, color=ACCENT, alpha=0.22, linewidth=0, label="90% interval")
    axes.plot(bits, [forecast.kl for forecast in forecasts], "-o", color=ACCENT, linewidth=1.8, ms=4, label="forecast")


def _note(axes: Axes, text: str, place: tuple[float, float]) -> None:
    """A few words beside a point."""
    axes.annotate(text, place, xytext=(7, 5), textcoords="offset points", color=INK, fontsize=9)


def _label_losses(axes: Axes, unit: str) -> None:
    axes.set_yscale("log")
    axes.set_xlabel("bits per weight, all counted")
    axes.set_ylabel(f"KL to the original, {unit}")
    plain_ticks(axes.yaxis)
    _legend(axes)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, handlelength=1.4, borderaxespad=0.2)


def _drawable(value: float) -> bool:
    return math.isfinite(value) and value > 0
