"""Compile models at several budgets with several recipes, each in a process of its own, and tabulate what came of it.

    python benchmarks/compile_models.py --model NAME=PATH --data NAME=FILE [--eval-data NAME=FILE]
        --budgets 3,3.5,4 --variant default --variant "article:allocate=article" --out benchmarks/results/table.json

A variant is the name of a recipe, or settings behind a label (`label:effort=quick,stage=…,stage.option=…`). Sizes are
read from the disk, not from the report. Prints a Markdown table; writes JSON with versions, seed and machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COLUMNS = ("model", "variant", "asked", "bits", "linear bits", "KL forecast", "KL measured", "loss before",
           "loss after", "accuracy", "seconds", "peak MB")  # fmt: skip


def main() -> None:
    """Compile, print, write."""
    arguments = parse_arguments()
    data = dict(item.split("=", 1) for item in arguments.data)
    evaluation = dict(item.split("=", 1) for item in arguments.eval_data)
    rows: list[dict[str, Any]] = []
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    for model in arguments.model:
        name, _, path = model.partition("=")
        for variant in arguments.variant:
            for budget in arguments.budgets.split(","):
                row = run(name, path, variant, budget, data.get(name), evaluation.get(name), arguments)
                rows.append(row)
                print(line(row), flush=True)
    record = {"machine": machine(), "seed": arguments.seed, "arguments": sys.argv[1:], "rows": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def run(
    name: str,
    path: str,
    variant: str,
    budget: str,
    data: str | None,
    evaluation: str | None,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """One compile in a process of its own, so that its peak memory is its own."""
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
        done, seconds = timed(command)
        if done.returncode:
            return {"model": name, "variant": label, "asked": budget, "error": done.stderr.strip().splitlines()[-1:]}
        report = json.loads(done.stdout)
        files = [f for f in out.iterdir() if f.name in ("model.safetensors", "model.onnx", "model.onnx.data")]
        size = sum(file.stat().st_size for file in files)
    report.pop("sites")
    return {
        "model": name,
        "variant": label,
        "asked": budget,
        "bytes": size,
        "bits": 8 * size / report["model"]["parameters"],
        "wall_seconds": seconds,
        "report": report,
    }


def timed(command: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a command to its end, whatever that is; its wall-clock seconds."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done, time.perf_counter() - start


def line(row: dict[str, Any]) -> str:
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


def machine() -> dict[str, str | int | None]:
    """What it ran on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="NAME=PATH")
    parser.add_argument("--data", action="append", default=[], help="NAME=FILE")
    parser.add_argument("--eval-data", action="append", default=[], help="NAME=FILE")
    parser.add_argument("--budgets", default="3,3.5,4")
    parser.add_argument("--variant", action="append", default=None, help="recipe, or label:setting,setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workspace", type=Path, default=Path(tempfile.gettempdir()) / "guidedq-benchmark")
    parser.add_argument("--more", default="", help="further options of guidedq compile")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/compile_models.json"))
    parsed = parser.parse_args()
    parsed.variant = parsed.variant or ["default"]
    return parsed


if __name__ == "__main__":
    main()
