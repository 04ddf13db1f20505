"""Write docs/law.md from what `guidedq law` found on the demo's checkpoints.

    python benchmarks/train_demo.py --out h96 --tokens 16000000 --anneal
        --checkpoints 500000,1000000,2000000,4000000,8000000
    python benchmarks/train_demo.py --out h64 --tokens 2000000 --checkpoints 500000,1000000 --anneal --hidden-size 64
        --intermediate-size 136
    python benchmarks/train_demo.py --out h48 --tokens 2000000 --checkpoints 500000,1000000 --anneal --hidden-size 48
        --intermediate-size 100
    guidedq law h48/annealed-500000 h48/annealed-1000000 h48/model ... h96/annealed-8000000 demo --tokens 0.5M,1M,2M,...
        --data calibration.jsonl --eval-data evaluation.jsonl --out DIR
    python benchmarks/law_page.py DIR --results benchmarks/results/demo-law --page docs/law.md

The two texts are `guidedq.demo.demo_text` of these names, a document a line. The first training may be stopped when it
has written its last checkpoint. Each was started with one thread.

Copies law.json and law.toml to --results, the figures to docs/pictures, and puts the numbers into the page's text.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from pathlib import Path

import numpy as np

from guidedq.law.forms import Form
from guidedq.law.record import GUIDED, UNIFORM, Law, measured_of, read_law
from guidedq.law.regression import fit_form, growth, predicted
from guidedq.law.training import TrainingLaw, fit_training_law

PICTURES = ("training", "curve", "effective-parameters", "equal-loss")


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Write docs/law.md.")
    parser.add_argument("folder", type=Path, help="what guidedq law wrote")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--page", type=Path, required=True)
    arguments = parser.parse_args()
    law = read_law(arguments.folder / "law.toml")
    for suffix in (".json", ".toml"):
        shutil.copy(arguments.folder / f"law{suffix}", arguments.results.with_suffix(suffix))
    pictures = arguments.page.parent / "pictures"
    for name in PICTURES:
        shutil.copy(arguments.folder / f"{name}.png", pictures / f"law-{name}.png")
    arguments.page.write_text(page(law), encoding="utf-8")


def page(law: Law) -> str:
    """The page's text."""
    training = law.training
    if training is None:
        raise SystemExit(law.training_problem)
    terms = (
        f"{training.floor:.3g} + {training.a:.3g} / N^{training.alpha:.3g} + {training.b:.3g} / D^{training.beta:.3g}"
    )
    alphas, shares = training_ranges(law)
    return PAGE.format(
        machine=f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}",
        uniform=increases(law, UNIFORM),
        guided=increases(law, GUIDED),
        growth=growths(law),
        parameters=parameters(law),
        errors=errors(law),
        by_width=errors_by_width(law),
        alphas=alphas,
        shares=shares,
        costs=costs(law),
        training=terms,
        source=training.source,
        numbers=training_numbers(training),
    )


def increases(law: Law, allocation: str) -> str:
    """The loss increase of every model at every width."""
    widths = sorted({point.width for model in law.models for point in model.points}, reverse=True)
    lines = [
        "| N | D | D/N | loss | " + " | ".join(f"{width} bits" for width in widths) + " |",
        "|---" * (4 + len(widths)) + "|",
    ]
    for model in law.models:
        found = {point.width: point.increase for point in model.points if point.allocation == allocation}
        tokens = model.tokens or 0.0
        facts = (
            f"{model.parameters:,}",
            f"{tokens / 1e6:.3g}M",
            f"{tokens / model.parameters:.3g}",
            f"{model.loss:.3f}",
        )
        lines.append("| " + " | ".join((*facts, *(f"{found[width]:+.2g}" for width in widths))) + " |")
    return "\n".join(lines)


def growths(law: Law) -> str:
    """The exponent of tokens per parameter at each width: all models, and those of the most common size alone."""
    sizes = [model.parameters for model in law.models]
    usual = max(set(sizes), key=sizes.count)
    alone = [model for model in law.models if model.parameters == usual]
    lines = [
        f"| bits | uniform | uniform, N = {usual:,} alone | guided | guided, N = {usual:,} alone |",
        "|---" * 5 + "|",
    ]
    for width in sorted({point.width for model in law.models for point in model.points}):
        cells = [f"{width}"]
        for allocation in (UNIFORM, GUIDED):
            for models in (law.models, alone):
                measured, widths, _ = measured_of(models, allocation)
                found = growth(measured.where(widths == width))
                cells.append("" if found is None else "{:.2f} ({:.2f} to {:.2f})".format(*found))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parameters(law: Law) -> str:
    """The fitted parameters with their intervals."""
    lines = ["| law | parameter | uniform | guided |", "|---|---|---|---|"]
    forms = law.allocations[UNIFORM].forms
    for form in forms:
        intervals = {name: law.allocations[name].forms[form].fit.intervals() for name in (UNIFORM, GUIDED)}
        for parameter in intervals[UNIFORM]:
            cells = ["{:.3g} ({:.3g} to {:.3g})".format(*intervals[name][parameter]) for name in (UNIFORM, GUIDED)]
            lines.append(f"| {form} | {parameter} | {cells[0]} | {cells[1]} |")
    ends = [law.allocations[allocation].effective for allocation in (UNIFORM, GUIDED)]
    cells = ["" if one is None else f"{one.g:.3g} ({one.low:.3g} to {one.high:.3g})" for one in ends]
    lines.append(f"| N_eff | g, bits | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def training_numbers(training: TrainingLaw) -> str:
    """The training law's numbers with their intervals."""
    lines = ["| parameter | value | 90% interval |", "|---|---|---|"]
    for shown, name, value in training.numbers:
        low, high = training.intervals[name]
        lines.append(f"| {shown} | {value:.3g} | {low:.3g} to {high:.3g} |")
    return "\n".join(lines)


def errors(law: Law) -> str:
    """The held-out errors of both forms."""
    lines = ["| law | uniform, widths | uniform, models | guided, widths | guided, models |", "|---" * 5 + "|"]
    for form in law.allocations[UNIFORM].forms:
        results = [law.allocations[name].forms[form] for name in (UNIFORM, GUIDED)]
        found = [error for result in results for error in (result.held_out_widths, result.held_out_models)]
        lines.append("| " + " | ".join((form, *("" if one is None else f"{one:.2f}" for one in found))) + " |")
    return "\n".join(lines)


def errors_by_width(law: Law) -> str:
    """The held-out error of each width alone."""
    ways = [(name, form) for name in (UNIFORM, GUIDED) for form in Form]
    lines = ["| width left out | " + " | ".join(f"{name}, {form}" for name, form in ways) + " |", "|---" * 5 + "|"]
    for width in sorted({point.width for model in law.models for point in model.points}):
        cells = [f"{width}"]
        for name, form in ways:
            measured, widths, _ = measured_of(law.models, name)
            held = measured.where((widths == width) & measured.clear)
            if not len(held.cells):
                cells.append("")
                continue
            fit = fit_form(form, measured.where(widths != width), law.train_bits)
            away = np.log(predicted(fit, held.cells)[0] / held.increase)
            cells.append(f"{np.sqrt(np.mean(away**2)):.2f} (mean {away.mean():+.2f}, {len(away)} models)")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def training_ranges(law: Law) -> tuple[str, str]:
    """How alpha, and the equal-loss share of the shipped model at 3 uniform bits, move when a model is left out."""
    facts = np.array([(model.parameters, model.tokens, model.loss) for model in law.models], dtype=np.float64)
    last = law.models[-1]
    increase = next(point.increase for point in last.points if (point.allocation, point.width) == (UNIFORM, 3))
    fits = [fit_training_law(*np.delete(facts, number, axis=0).T) for number in range(len(facts))]
    shares = [float(fit.equivalent(last.parameters, increase)) / last.parameters for fit in fits]
    alphas = [fit.alpha for fit in fits]
    return f"{min(alphas):.2f} to {max(alphas):.2f}", f"{min(shares):.0%} to {max(shares):.0%}"


def costs(law: Law) -> str:
    """What each width costs the shipped demo model, in parameters."""
    assert law.training is not None
    model = law.models[-1]
    lines = ["| allocation | bits per weight | loss increase | N_eff | size of equal loss |", "|---" * 5 + "|"]
    for point in model.points:
        effective = law.allocations[point.allocation].effective
        share = "" if effective is None else f"{float(effective.share(point.bits)) * model.parameters:,.0f}"
        equal = min(float(law.training.equivalent(model.parameters, point.increase)), model.parameters)
        size = f"{equal:,.0f} ({equal / model.parameters - 1:+.1%})"
        lines.append(f"| {point.allocation} | {point.bits:.2f} | {point.increase:+.2g} | {share} | {size} |")
    return "\n".join(lines)


PAGE = """\
# What precision costs: the law on the demo's checkpoints

`guidedq law` rounds models at several widths, measures the loss on held-out text, and fits two laws to the increase:

    power         L_PTQ - L_base = eta (D/N)^beta (b_train - b)^delta              b_train = 16
    exponential   L_PTQ - L_base = C_T (D^gamma_D / N^gamma_N) exp(-b / g_post)    (Kumar et al. 2024, arXiv 2411.04330)

N parameters, D training tokens, b bits per weight with every byte of the file counted: a width of 3 bits is 3.5 here,
for scales, zero points and norms. Models: the demo's architecture at three widths (hidden size 48, 64, 96), trained
by `benchmarks/train_demo.py --anneal` with one recipe and one order of the text; each checkpoint has its own
learning-rate decay, so each is what a run of that length would have ended with. The last one is the model that ships,
from the same script. Uniform: one width everywhere, groups of 64, GPTQ guided by the end loss. Guided: the default
recipe at quick effort in the bytes of each uniform model. Calibration and evaluation: Python modules that no model
was trained on, 64 sequences of 256 tokens to measure on; seed 0. {machine}. The numbers:
`benchmarks/results/demo-law.json`, and `demo-law.toml` for `guidedq law --predict`. This page is written by
`benchmarks/law_page.py`.

## Does more training make a model harder to quantize?

Yes. At 2 and 3 bits the loss increase grows with every step of training, at each size, for uniform and for guided
models; at 4 bits on the whole, with steps that the noise hides. It grows as a power of tokens per parameter; the
exponent, at each width alone, with 90% intervals (only measurements above three standard errors; nothing where there
are fewer than three):

{growth}

![Loss increase over tokens per parameter](pictures/law-training.png)

Uniform, loss increase in nats per token (standard errors at 8 bits are 0.00002 to 0.0002):

{uniform}

Guided, in the same bytes:

{guided}

Between 8 and 41.8 million tokens there is no checkpoint.

## The two laws

{parameters}

Value and 90% interval, from the covariance of the fit scaled by what is left over. The error on what the fit has not
seen, as root mean square of log(predicted / measured), each width and each model left out in turn:

{errors}

The exponential law is the better one, on widths and on models left out, for both allocations. Neither is a forecast:
an error of 0.8 is a factor of 2.2. It depends on the width:

{by_width}

A mean below zero says that more is lost than the others foretell: the logarithm of the increase is no straight line in
the bits, it bends upwards at both ends. At 6 and 8 bits few models lose more than the noise, and these are the ones
that lose most. In between, 3 and 4 uniform bits, the law is right to some 40%. For a model at hand `guidedq plan`
measures that model; the law is for models that are not there.

![Loss increase over bits](pictures/law-curve.png)

## What a width costs in parameters

The unquantized losses of these models give ({source})

    L(N, D) = {training}

{numbers}

With it an increase is turned into the size of an unquantized model that loses as much. Three sizes tell A and alpha
badly, not even alpha's sign, for the one can stand in for the other (when one of the models is left out, alpha goes
from {alphas}); the sizes of equal loss they tell better (the one of 3 uniform bits goes from {shares} of N). For the
model that ships:

{costs}

N_eff = N (1 - exp(-b / g)) has one g for all these models. It does not follow what rounding costs after training: it
was made for models that are trained at b bits, and does not know of D. The exponential law does (solid lines).

![Effective parameters](pictures/law-effective-parameters.png)

Lines of equal loss after 41.8 million tokens, and dashed lines of equal bytes; where they touch is the best use of a
file:

![Lines of equal loss](pictures/law-equal-loss.png)

All this is for models of a hundred thousand parameters on one kind of text. The three sizes differ by a factor of
three, so gamma_N and the training law are known far less well than the rest, and what lies outside is extrapolated.

## Asking the law

    guidedq law --predict benchmarks/results/demo-law.toml --parameters 300k --tokens 20M --bits 3.5

answers with the increase and its interval, the loss, what half a bit more or less at this size does to the file and to
the loss, and what other sizes in the same bytes lose. What lies outside of the measured sizes, tokens (by more than a
factor of two) and widths is starred, with the nearest measured value: the interval knows nothing of that.

What needs a training law, N_eff, the sizes of equal loss, the trade of bits for parameters and the lines of equal loss,
is told where one was fitted (to six models of three sizes and three token counts at least), or where the published one
(Hoffmann et al. 2022, arXiv 2203.15556) comes within a tenth of the loss that was measured. Of these models it says 10
to 20 nats where 2.4 to 5.2 were measured, so a law of one of them, or of the checkpoints of one size, says why it is
silent instead.
"""


if __name__ == "__main__":
    main()
