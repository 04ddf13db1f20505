"""What the law looks like: the loss over the bits, the drop of the effective parameters, lines of equal loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from guidedq.law.forms import Cells, Form
from guidedq.law.record import GUIDED, UNIFORM, AllocationLaw, Law, SweptModel, measured_of
from guidedq.law.regression import predicted
from guidedq.law.trades import sizes_problem
from guidedq.law.training import FITTED
from guidedq.report.palette import ACCENT, INK, MEASURED, MUTED, PAPER, WIDTH_COLOURS
from guidedq.report.plots import label_in_full, new_figure, plain_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (7.0, 4.4)
COLOURS: Mapping[str, str] = {UNIFORM: MEASURED, GUIDED: ACCENT}
STEPS = 200
"""Points of a line."""
REACH = 4.0
"""The lines of equal loss are drawn for sizes this many times smaller and larger than the models that were measured."""
LEVELS = 8
"""Lines of equal loss."""


def law_figures(law: Law) -> dict[str, Figure]:
    """All figures that the law has something for, by the name of their file."""
    figures = {"curve": curve_figure(law)}
    if any(one.effective for one in law.allocations.values()):
        figures["effective-parameters"] = effective_figure(law)
    if len({model.tokens for model in law.models} - {None}) > 1:
        figures["training"] = training_figure(law)
    name = next((name for name in (GUIDED, UNIFORM) if _tells_sizes(law, name)), None)
    if name is not None:
        figures["equal-loss"] = equal_loss_figure(law, name)
    return figures


def lines_problem(law: Law) -> str:
    """Why there are no lines of equal loss; empty where `law_figures` draws them."""
    if problem := sizes_problem(law):
        return problem
    if any(_tells_sizes(law, name) for name in law.allocations):
        return ""
    return "no exponential law was fitted to models of several sizes."


def curve_figure(law: Law) -> Figure:
    """Measured loss increases of the model that saw most tokens (the last of equals), and both forms through them."""
    model = law.models[shown_model(law)]
    figure, axes = new_figure(SIZE)
    for name, one in law.allocations.items():
        points = [point for point in model.points if point.allocation == name and point.increase > 0]
        if not points:
            continue
        bits = np.array([point.bits for point in points])
        errors = np.array([min(point.error, 0.9 * point.increase) for point in points])
        style: dict[str, Any] = {"fmt": "o", "color": COLOURS[name], "mec": PAPER, "ms": 7, "capsize": 2, "zorder": 4}
        axes.errorbar(bits, [point.increase for point in points], yerr=errors, label=f"{name}, measured", **style)
        line = np.linspace(bits.min(), bits.max(), STEPS)
        for form, dashes in ((Form.EXPONENTIAL, "-"), (Form.POWER, (0, (4, 3)))):
            if form.value in one.forms:
                centre, low, high = predicted(one.forms[form.value].fit, _cells(model, line))
                axes.plot(
                    line, centre, linestyle=dashes, color=COLOURS[name], linewidth=1.5, label=f"{name}, {form} law"
                )
                if form is Form.EXPONENTIAL:
                    axes.fill_between(line, low, high, color=COLOURS[name], alpha=0.16, linewidth=0)
    axes.set_yscale("log")
    plain_ticks(axes.yaxis)
    label_in_full(axes, "bits per weight, everything counted", f"loss increase, {law.unit}", _title(model))
    return figure


def effective_figure(law: Law) -> Figure:
    """The sizes that lose as much as the shown model at each width, and N_eff of one g for all models, over N."""
    model = law.models[shown_model(law)]
    figure, axes = new_figure(SIZE)
    for name, one in law.allocations.items():
        points = [point for point in model.points if point.allocation == name]
        if one.effective is None or law.training is None or not points:
            continue
        bits = np.array([point.bits for point in points])
        line = np.linspace(bits.min(), bits.max(), STEPS)
        size, colour = float(model.parameters), COLOURS[name]
        equal = law.training.equivalent(size, np.array([point.increase for point in points])) / size
        axes.plot(bits, equal, "o", color=colour, mec=PAPER, ms=7, label=f"{name}: of equal loss", zorder=4)
        if Form.EXPONENTIAL.value in one.forms:
            increase, _, _ = predicted(one.forms[Form.EXPONENTIAL.value].fit, _cells(model, line))
            label = f"{name}: by the exponential law"
            axes.plot(line, law.training.equivalent(size, increase) / size, color=colour, linewidth=1.7, label=label)
        label = f"{name}: N_eff, 1 - exp(-b / {one.effective.g:.2f})"
        axes.plot(line, one.effective.share(line), color=colour, linestyle=(0, (4, 3)), linewidth=1.3, label=label)
    axes.set_ylim(0, 1.05)
    source = "" if law.training is None else f"; {law.training.source} training law"
    label_in_full(
        axes, "bits per weight, everything counted", "effective parameters, N_eff / N", _title(model) + source
    )
    return figure


def training_figure(law: Law) -> Figure:
    """The loss increase at each uniform width over tokens per parameter; a line for each size of model."""
    figure, axes = new_figure(SIZE)
    measured, widths, _ = measured_of(law.models, UNIFORM)
    cells = measured.cells
    for width in sorted(set(widths.astype(int).tolist())):
        colour = WIDTH_COLOURS.get(width, INK)
        for number, size in enumerate(sorted(set(cells.parameters.tolist()), reverse=True)):
            mine = measured.where((widths == width) & (cells.parameters == size) & (measured.increase > 0))
            ratio = mine.cells.tokens / mine.cells.parameters
            order = np.argsort(ratio)
            style = {"linestyle": ("-", "--", ":")[number % 3], "marker": "os^"[number % 3], "mec": PAPER, "ms": 6}
            label = f"{width} bits" if number == 0 else None
            axes.plot(ratio[order], mine.increase[order], color=colour, linewidth=1.3, label=label, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    sizes = ", ".join(f"{size:,}" for size in sorted({model.parameters for model in law.models}, reverse=True))
    title = f"the same width after more training; N = {sizes}"
    label_in_full(axes, "training tokens per parameter", f"loss increase, {law.unit}", title)
    return figure


def equal_loss_figure(law: Law, allocation: str) -> Figure:
    """Lines of equal loss over parameters and bits, for the shown model's tokens; dashed: equal bytes."""
    assert law.training is not None, "asked for by law_figures alone"
    model = law.models[shown_model(law)]
    sizes = [float(one.parameters) for one in law.models]
    swept = [point.bits for point in model.points if point.allocation == allocation]
    parameters = np.geomspace(min(sizes) / REACH, max(sizes) * REACH, STEPS)
    bits = np.linspace(min(swept), max(swept), STEPS)
    n, b = np.meshgrid(parameters, bits)
    tokens = float(model.tokens or 0.0)
    cells = Cells(parameters=n.ravel(), tokens=np.full(n.size, tokens), bits=b.ravel())
    fit = law.allocations[allocation].forms[Form.EXPONENTIAL.value].fit
    loss = law.training.loss(n, np.full_like(n, tokens)) + predicted(fit, cells)[0].reshape(n.shape)
    figure, axes = new_figure(SIZE)
    levels = np.unique(np.quantile(loss, np.linspace(0.04, 0.9, LEVELS)))
    lines = axes.contour(n, b, loss, levels=levels, colors=[ACCENT], linewidths=1.5)
    axes.clabel(lines, fmt="%.3g", fontsize=8.5, colors=[INK])
    axes.contour(n, b, np.log(n * b), levels=LEVELS, colors=[MUTED], linewidths=0.8, linestyles=[(0, (4, 3))])
    axes.plot(sizes, [float(np.median(bits))] * len(sizes), "|", color=MEASURED, ms=10, label="sizes measured")
    axes.set_xscale("log")
    title = f"loss in {law.unit}, {allocation}, {tokens:,.0f} tokens; dashed: equal bytes"
    label_in_full(axes, "parameters N", "bits per weight", title)
    return figure


def shown_model(law: Law) -> int:
    """The number of the model that saw most tokens; of equals the largest, then the last."""
    order = [(model.tokens or 0.0, model.parameters, number) for number, model in enumerate(law.models)]
    return max(order)[-1]


def _tells_sizes(law: Law, name: str) -> bool:
    one: AllocationLaw | None = law.allocations.get(name)
    form = None if one is None else one.forms.get(Form.EXPONENTIAL.value)
    fitted = law.training is not None and law.training.source == FITTED
    return fitted and form is not None and "gamma_N" in form.fit.names


def _cells(model: SweptModel, bits: np.ndarray) -> Cells:
    tokens = np.nan if model.tokens is None else model.tokens
    return Cells(parameters=np.full(len(bits), float(model.parameters)), tokens=np.full(len(bits), tokens), bits=bits)


def _title(model: SweptModel) -> str:
    tokens = "" if model.tokens is None else f", {model.tokens / model.parameters:.3g} tokens per parameter"
    return f"{model.name}, {model.parameters:,} parameters{tokens}"
