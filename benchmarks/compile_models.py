"""Compile models at several budgets with several recipes, each in a process of its own, and tabulate what came of it.

    python benchmarks/compile_models.py --model NAME=PATH --data NAME=FILE [--eval-data NAME=FILE]
        --budgets 3,3.5,4 --variant default --variant "article:allocate=article" --out benchmarks/results/table.json

A variant is the name of a recipe, or settings behind a label (`label:effort=quick,stage=…,stage.option=…`). Sizes are
read from the disk, not from the report. Prints a Markdown table; writes JSON with versions, seed and machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from records import Record, Row, options, pairs, timed

COLUMNS = ("model", "variant", "asked", "bits", "linear bits", "KL forecast", "KL measured", "loss before",
           "loss after", "accuracy", "seconds", "peak MB")  # fmt: skip


def main() -> None:
    """Compile, print, write."""
    arguments = parse_arguments()
    arguments.out.unlink(missing_ok=True)
    record = Record(arguments.out, seed=arguments.seed, arguments=sys.argv[1:])
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    for name, path in pairs(arguments.model).items():
        for variant in arguments.variant:
            for budget in arguments.budgets.split(","):
                record.add(run(name, path, variant, budget, arguments))
                print(line(record.rows[-1]), flush=True)


def run(name: str, path: str, variant: str, budget: str, arguments: argparse.Namespace) -> Row:
    """One compile in a process of its own, so that its peak memory is its own."""
    data, evaluation = pairs(arguments.data).get(name), pairs(arguments.eval_data).get(name)
    label, _, settings = variant.partition(":")
    recipe = [] if settings else ["--recipe", label]
    changes = [setting for setting in settings.split(",") if setting]
    efforts = [word for change in changes if change.startswith("effort=") for word in ("--effort", change[7:])]
    words = [word for change in changes if not change.startswith("effort=") for word in ("--set", change)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [
            *(sys.executable, "-m", "guidedq", "compile", path, f"--budget={budget}"),
            *("--out", str(out), "--json"),
            *("--workspace", str(arguments.workspace), "--seed", str(arguments.seed)),
            *recipe, *efforts, *words, *arguments.more.split(),
            *(("--data", data) if data else ()), *(("--eval-data", evaluation) if evaluation else ()),
        ]  # fmt: skip
        ran = timed(command)
        if ran.done.returncode:
            wrong = ran.done.stderr.strip().splitlines()[-1:]
            return {"model": name, "variant": label, "asked": budget, "error": wrong}
        report = json.loads(ran.done.stdout)
        files = [f for f in out.iterdir() if f.name in ("model.safetensors", "model.onnx", "model.onnx.data")]
        size = sum(file.stat().st_size for file in files)
    for part in ("sites", "folder", "files", "sampling"):  # of this machine, or long
        report.pop(part, None)
    return {
        "model": name,
        "variant": label,
        "asked": budget,
        "bytes": size,
        "bits": 8 * size / report["model"]["parameters"],
        "wall_seconds": ran.seconds,
        "cpu_seconds": ran.cpu_seconds,
        "report": report,
    }


def line(row: Row) -> str:
    """One row of the Markdown table."""
    if "error" in row:
        return f"| {row['model']} | {row['variant']} | {row['asked']} | {' '.join(row['error'])} |"
    report, forecast, measured = row["report"], row["report"]["forecast"], row["report"]["measured"]
    before, after = measured["accuracy_before"], measured["accuracy_after"]
    cells = (
        row["model"],
        row["variant"],
        row["asked"],
        f"{row['bits']:.4f}",
        f"{report['size']['linear_bits_per_weight']:.3f}",
        f"{forecast['kl']:.4g} ({forecast['kl_low']:.4g} to {forecast['kl_high']:.4g})",
        f"{measured['kl']:.4g}",
        f"{measured['loss_before']:.4f}",
        f"{measured['loss_after']:.4f}",
        "" if before is None else f"{before:.4f} to {after:.4f}",
        f"{row['wall_seconds']:.0f}",
        f"{report['peak_memory_bytes'] / 1e6:.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = options(__doc__, budgets="3,3.5,4", out="compile_models.json")
    parser.add_argument("--variant", action="append", default=None, help="recipe, or label:setting,setting")
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    parsed.variant = parsed.variant or ["default"]
    return parsed


if __name__ == "__main__":
    main()
