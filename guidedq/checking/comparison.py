"""Guided against uniform quantization: every variant within the same bytes, measured on the same samples."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

from guidedq.artifacts.report import Report
from guidedq.budget import Budget
from guidedq.compiler import compile_model
from guidedq.driver.job import Job, Stopwatch
from guidedq.errors import BudgetError
from guidedq.output import check_output
from guidedq.quant.formats import parse_format
from guidedq.recipe import Recipe, load_recipe
from guidedq.report.wording import format_text

UNIFORM = ("nearest", "gptq", "guided-uniform")
"""Recipes with one format everywhere: plain rounding, GPTQ as other tools do it, and GPTQ in the guided metric."""
PLAIN = UNIFORM[:2]
"""Those that know nothing of the end loss."""
GUIDED = "guided"
EQUAL = "guided-equal"
"""The guided recipe once more, in no more bytes than the best plain uniform file, which rarely fills the budget."""
UNIFORM_GROUP_SIZES = (32, 64, 128)
"""The group sizes in use: the best that fits is taken, so that a uniform variant does not lose by its granularity."""
LISTED_FORMATS = 2
"""A mixture of more formats than this is given by its ends."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One variant.

    Attributes:
        name: Of its recipe.
        recipe: How it was compiled.
        report: What came of it.
        folder: Where it lies, if it was to be kept.
    """

    name: str
    recipe: Recipe
    report: Report
    folder: Path | None

    @property
    def seconds(self) -> float:
        """Of all stages together; less than alone where the workspace already had something."""
        return sum(self.report.seconds.values(), 0.0)

    @property
    def formats(self) -> str:
        """The formats in use, for people: `3-bit/64`, or `2 to 6 bits` for a mixture of many."""
        used = dict.fromkeys(format for site in self.report.sites for format in site.rows)
        if len(used) <= LISTED_FORMATS:
            return ", ".join(map(format_text, used))
        widths = sorted(parse_format(format).bits for format in used)
        return f"{widths[0]} to {widths[-1]} bits"


def variants(recipe: Recipe) -> Mapping[str, Recipe]:
    """The uniform recipes with the given one's scope and limits, and last the given one itself."""
    limits = {"min_bits": recipe.min_bits, "max_bits": recipe.max_bits, "scope": recipe.scope, "keep": recipe.keep}
    uniform = {name: replace(load_recipe(name), group_sizes=UNIFORM_GROUP_SIZES, **limits) for name in UNIFORM}
    return {**uniform, GUIDED: recipe}


def compare_variants(job: Job, budget: Budget, *, out: Path | None, overwrite: bool) -> tuple[Compared, ...]:
    """Compile every variant within the budget, and the guided one also in the bytes of its best plain rival.

    A budget for loss is the guided variant's: the others get the bytes that it takes. Uniform variants that have no
    format small enough are left out, with a notice.

    Args:
        job: Its recipe is the guided variant's; all share model, backend, data and workspace.
        budget: The same for all.
        out: Folder that gets one artifact for each variant; `None` keeps none.
        overwrite: Replace artifacts in it.

    Raises:
        GuidedQError: as `compile_model`.
    """
    chosen = variants(job.recipe)
    if out is not None:
        for name in (*chosen, EQUAL):
            check_output(out / name, overwrite=overwrite)
    with tempfile.TemporaryDirectory(prefix="guidedq-compare-") as scratch:

        def compiled(name: str, recipe: Recipe, asked: Budget) -> Compared:
            job.progress.notice(f"variant {name}")
            mine = replace(job, recipe=recipe, stopwatch=Stopwatch())
            folder = (Path(scratch) if out is None else out) / name
            artifact = compile_model(mine, asked, folder, overwrite=overwrite, curve_bits=())
            return Compared(name=name, recipe=recipe, report=artifact.report, folder=None if out is None else folder)

        def fitting(name: str, recipe: Recipe, asked: Budget) -> tuple[Compared, ...]:
            try:
                return (compiled(name, recipe, asked),)
            except BudgetError as error:
                job.progress.notice(f"no {name}: {error}")
                return ()

        guided = compiled(GUIDED, job.recipe, budget)
        if budget.bounds_loss:
            budget = _bytes_budget(counted_bytes(guided.report))
        plain = [one for name, recipe in chosen.items() if name != GUIDED for one in fitting(name, recipe, budget)]
        rival = best_uniform(plain)
        equal = () if rival is None else fitting(EQUAL, job.recipe, _bytes_budget(counted_bytes(rival.report)))
    return (*plain, guided, *equal)


def _bytes_budget(size: int) -> Budget:
    return Budget(text=f"{size}B", kind="bytes", amount=float(size))


def counted_bytes(report: Report) -> int:
    """The bytes that the budget bounds: the whole file, or under the scope `linear` the sites alone."""
    return report.size.file_bytes if report.budget.scope == "file" else sum(site.bytes for site in report.sites)


def best_uniform(compared: Sequence[Compared]) -> Compared | None:
    """The variant of least measured KL among those that know nothing of the end loss, if any fits."""
    return min((one for one in compared if one.name in PLAIN), key=lambda one: one.report.measured.kl, default=None)


def comparison_facts(compared: Sequence[Compared]) -> dict[str, Any]:
    """The comparison as plain values, for machines."""
    first = compared[0].report
    return {
        "model": asdict(first.model),
        "budget": asdict(first.budget),
        "variants": [
            {
                "name": one.name,
                "recipe": dict(one.recipe.text()),
                "formats": one.formats,
                "file_bytes": one.report.size.file_bytes,
                "bits_per_weight": one.report.size.bits_per_weight,
                "linear_bits_per_weight": one.report.size.linear_bits_per_weight,
                "forecast": asdict(one.report.forecast),
                "measured": asdict(one.report.measured),
                "seconds": one.seconds,
                "folder": None if one.folder is None else str(one.folder),
            }
            for one in compared
        ],
    }
