"""The plots of a compile, a plan and a comparison, as matplotlib figures. Losses are on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from guidedq.artifacts.forecast import Forecast
from guidedq.artifacts.report import MeasuredFacts, PlanPoint, Report, ScheduleFacts
from guidedq.report.drawing import Size
from guidedq.report.knee import knee
from guidedq.report.palette import ACCENT, INK, LINES, LOSS, MEASURED, MUTED, PAPER, VARIANT_COLOURS
from guidedq.report.parts import draw_parts, with_parts
from guidedq.report.wording import loss_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_SIZE: Size = (5.0, 3.7)
SMALLEST_LOSS = 1e-12
"""The floor of intervals on logarithmic axes. What is zero, or not finite, cannot be drawn there and is left out."""
SAME_LOSS = 0.01
"""Relative: without labels the loss rises by the divergence itself, and one curve tells both."""
ROOM_BELOW = 0.6
"""The axis ends at this share of the least value: intervals that reach towards zero run out of the frame."""


def curve_figure(report: Report, size: Size = PLOT_SIZE) -> Figure:
    """Predicted KL and loss increase against size, with intervals and knee; the probes; this file, as measured."""
    figure, axes = new_figure(size)
    _draw_curve(axes, [(point.bits_per_weight, point.forecast) for point in report.curve])
    _draw_knee(axes, report.curve)
    probed = [(probe.bits_per_weight, probe.measured_kl) for probe in report.probes if _drawable(probe.measured_kl)]
    if probed:
        bits, losses = zip(*probed, strict=True)
        axes.plot(bits, losses, "o", mfc=PAPER, mec=MEASURED, ms=6, label="probes, KL measured", zorder=4)
    here = report.size.bits_per_weight
    axes.axvline(here, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    if _drawable(report.forecast.kl):
        axes.plot(
            [here], [report.forecast.kl], "o", color=ACCENT, ms=9, mec=PAPER, zorder=5, label="this file, KL forecast"
        )
    if _drawable(report.measured.kl):
        axes.plot(
            [here], [report.measured.kl], "D", color=MEASURED, ms=7, mec=PAPER, zorder=6, label="this file, KL measured"
        )
    if _losses_differ([report.forecast, report.measured]) and _drawable(report.measured.loss_increase):
        place = [here], [report.measured.loss_increase]
        axes.plot(*place, "D", color=LOSS, ms=7, mec=PAPER, zorder=6, label="this file, loss measured")
    _label_losses(axes, report.model.unit, [report.forecast, *(point.forecast for point in report.curve)])
    return figure


def precisions_figure(report: Report, size: Size = PLOT_SIZE) -> Figure:
    """KL and loss of a nested file at each precision, forecast with intervals and measured, against what it reads."""
    figure, axes = new_figure(size)
    _draw_curve(axes, [(facts.read_bits_per_weight, facts.forecast) for facts in report.precisions])
    drawn = [facts for facts in report.precisions if _drawable(facts.measured.kl)]
    places = [(facts.read_bits_per_weight, facts.measured.kl) for facts in drawn]
    if places:
        axes.plot(*zip(*places, strict=True), "D", color=MEASURED, ms=6, mec=PAPER, zorder=6, label="KL measured")
    for facts, place in zip(drawn, places, strict=True):
        _note(axes, f"{facts.bits} bits", place)
    _label_losses(axes, report.model.unit, [facts.forecast for facts in report.precisions])
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
    """Predicted against measured: this file at each precision, with intervals; probes, uncalibrated; equality."""
    figure, axes = new_figure(size)
    probed = [(probe.raw_kl, probe.measured_kl) for probe in report.probes]
    probed = [pair for pair in probed if all(map(_drawable, pair))]
    kept = [(facts.forecast, facts.measured) for facts in report.precisions] or [(report.forecast, report.measured)]
    each = "each precision" if report.precisions else "this file"
    promised = {(f"{each}, KL", ACCENT): [(f.kl_low, f.kl, f.kl_high, found.kl) for f, found in kept]}
    if _losses_differ([one for pair in kept for one in pair]):
        promised[f"{each}, loss increase", LOSS] = [
            (f.loss_increase_low, f.loss_increase, f.loss_increase_high, found.loss_increase) for f, found in kept
        ]
    promised = {
        key: [four for four in made if _drawable(four[1]) and _drawable(four[3])] for key, made in promised.items()
    }
    values = [value for pair in probed for value in pair]
    values += [value for made in promised.values() for four in made for value in (four[1], four[3])]
    ends = [min(values) / 2, max(values) * 2] if values else [0.1, 1.0]
    if values:
        axes.plot(ends, ends, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), label="exact")
    if probed:
        axes.plot(*zip(*probed, strict=True), "o", mfc=PAPER, mec=MEASURED, ms=6, label="probes, before calibration")
    for (label, colour), made in promised.items():
        if made:
            low, predicted, high, measured = zip(*made, strict=True)
            reach = _whiskers(low, predicted, high)
            style: dict[str, Any] = {"fmt": "D", "color": colour, "ms": 7, "mec": PAPER, "capsize": 3}
            axes.errorbar(predicted, measured, xerr=reach, label=label, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_xlabel(f"predicted, {report.model.unit}")
    axes.set_ylabel(f"measured, {report.model.unit}")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    _legend(axes)
    return figure


def plan_figure(points: Sequence[PlanPoint], model: str, unit: str, size: Size = (7.0, 7.2)) -> Figure:
    """The forecast at each budget of a plan, every point labelled with its KL, the knee, and where the bits go."""
    shown = with_parts(points)
    figure, made = new_figure(size, 1 + bool(shown))
    axes = made[0] if shown else made
    _draw_curve(axes, [(point.bits_per_weight, point.forecast) for point in points])
    _draw_knee(axes, points)
    for point in points:
        if _drawable(point.forecast.kl):
            _note(axes, loss_text(point.forecast.kl), (point.bits_per_weight, point.forecast.kl))
    axes.set_title(f"{model}: predicted loss against size", loc="left", color=INK, fontsize=11)
    _label_losses(axes, unit, [point.forecast for point in points])
    if shown:
        draw_parts(made[1], shown)
    return figure


def parts_figure(points: Sequence[PlanPoint], size: Size = PLOT_SIZE) -> Figure:
    """Where the bits go at each of some budgets."""
    figure, axes = new_figure(size)
    draw_parts(axes, with_parts(points))
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
    """Forecasts by bits per weight: the KL as a line in its band, the loss increase as a dashed one with whiskers."""
    drawn = sorted((point for point in points if _drawable(point[1].kl)), key=lambda point: point[0])
    if not drawn:
        return
    bits, forecasts = zip(*drawn, strict=True)
    low = [max(forecast.kl_low, SMALLEST_LOSS) for forecast in forecasts]
    high = [forecast.kl_high if math.isfinite(forecast.kl_high) else forecast.kl for forecast in forecasts]
    axes.fill_between(bits, low, high, color=ACCENT, alpha=0.22, linewidth=0, label="KL, 90% interval")
    axes.plot(
        bits, [forecast.kl for forecast in forecasts], "-o", color=ACCENT, linewidth=1.8, ms=4, label="KL forecast"
    )
    least = low
    rising = [(bits, forecast) for bits, forecast in drawn if _drawable(forecast.loss_increase)]
    if rising and _losses_differ(forecasts):
        bits, forecasts = zip(*rising, strict=True)
        rises = [forecast.loss_increase for forecast in forecasts]
        reach = _whiskers(
            [forecast.loss_increase_low for forecast in forecasts],
            rises,
            [forecast.loss_increase_high for forecast in forecasts],
        )
        style: dict[str, Any] = {"fmt": "--s", "color": LOSS, "linewidth": 1.3, "ms": 3.5, "capsize": 2.5}
        axes.errorbar(bits, rises, yerr=reach, elinewidth=1.0, label="loss increase, 90% interval", **style)
        least = [*low, *rises]
    axes.set_yscale("log")
    axes.set_ylim(bottom=ROOM_BELOW * min(least))


def _whiskers(low: Sequence[float], values: Sequence[float], high: Sequence[float]) -> list[list[float]]:
    """How far intervals reach below and above their values; to the floor and a thousandfold at most."""
    below = [max(value - max(end, SMALLEST_LOSS), 0.0) for end, value in zip(low, values, strict=True)]
    above = [max(min(end, 1e3 * value) - value, 0.0) for end, value in zip(high, values, strict=True)]
    return [below, above]


def _losses_differ(found: Sequence[Forecast | MeasuredFacts]) -> bool:
    """Whether the loss increase is another number than the KL, as it is where labels are given."""
    pairs = [(one.kl, one.loss_increase) for one in found]
    pairs += [(one.kl_high, one.loss_increase_high) for one in found if isinstance(one, Forecast)]
    return any(abs(rise - kl) > SAME_LOSS * abs(kl) for kl, rise in pairs if math.isfinite(kl))


def _draw_knee(axes: Axes, points: Sequence[PlanPoint]) -> None:
    if (bend := knee(points)) is not None and _drawable(bend.forecast.kl):
        place = [bend.bits_per_weight], [bend.forecast.kl]
        axes.plot(*place, "o", mfc="none", mec=INK, ms=13, label=f"knee, {bend.asked}", zorder=5)


def _note(axes: Axes, text: str, place: tuple[float, float]) -> None:
    """A few words beside a point."""
    axes.annotate(text, place, xytext=(7, 5), textcoords="offset points", color=INK, fontsize=9)


def _label_losses(axes: Axes, unit: str, forecasts: Sequence[Forecast]) -> None:
    axes.set_yscale("log")
    axes.set_xlabel("bits per weight, all counted")
    axes.set_ylabel(f"{'KL and loss increase' if _losses_differ(forecasts) else 'KL to the original'}, {unit}")
    plain_ticks(axes.yaxis)
    _legend(axes)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, handlelength=1.4, borderaxespad=0.2)


def _drawable(value: float) -> bool:
    return math.isfinite(value) and value > 0
