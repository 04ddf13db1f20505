"""Is the guided model ever worse than a uniform one? Several models, budgets and draws of the calibration data.

    python benchmarks/against_uniform.py --model NAME=PATH --data NAME=FILE [--eval-data NAME=FILE]
        --budgets 2.5,3.5 --seeds 0,1,2 --out benchmarks/results/against_uniform.json --page docs/uniform.md

Runs `guidedq compare` (everything at quick effort): plain rounding and GPTQ in the best single format that fits, with
groups of 32, 64 and 128, and the guided model in no more bytes than the better of the two. What is found in the record
is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from compile_models import machine

PLAIN, EQUAL = ("nearest", "gptq"), "guided-equal"


def main() -> None:
    """Run what is missing; write the record and the page after each."""
    arguments = parse_arguments()
    record: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
    record |= {"machine": machine()}
    data = dict(item.split("=", 1) for item in arguments.data)
    evaluation = dict(item.split("=", 1) for item in arguments.eval_data)
    for model in arguments.model:
        name, _, path = model.partition("=")
        for seed in map(int, arguments.seeds.split(",")):
            for budget in arguments.budgets.split(","):
                if any((row["model"], row["seed"], row["budget"]) == (name, seed, budget) for row in record["rows"]):
                    continue
                row = {"model": name, "seed": seed, "budget": budget}
                row |= compared(path, budget, seed, data.get(name), evaluation.get(name), arguments)
                record["rows"].append(row)
                print(line(row), flush=True)
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(record, indent=1) + "\n")
                arguments.page.parent.mkdir(parents=True, exist_ok=True)
                arguments.page.write_text(page(record), encoding="utf-8")


def compared(
    path: str, budget: str, seed: int, data: str | None, evaluation: str | None, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Size and KL of every variant, or what went wrong."""
    command = [
        *(sys.executable, "-m", "guidedq", "compare", path, "--budget", f"{budget}bits", "--json", "--effort", "quick"),
        *("--seed", str(seed), "--workspace", str(arguments.workspace), *arguments.more.split()),
        *(("--data", data) if data else ()), *(("--eval-data", evaluation) if evaluation else ()),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": " ".join(done.stderr.strip().splitlines()[-1:])}
    variants = json.loads(done.stdout)["variants"]
    return {"variants": {one["name"]: {"bytes": one["file_bytes"], "kl": one["measured"]["kl"]} for one in variants}}


def ratio(row: dict[str, Any]) -> float | None:
    """KL of the guided model over that of the best plain uniform one, in no more bytes."""
    variants = row.get("variants", {})
    if EQUAL not in variants:
        return None
    return variants[EQUAL]["kl"] / min(variants[name]["kl"] for name in PLAIN)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    if row.get("error"):
        return f"| {row['model']} | {row['budget']} | {row['seed']} | {row['error']} | | | |"
    variants, best = row["variants"], ratio(row)
    kl = {name: f"{variants[name]['kl']:.4g}" if name in variants else "" for name in (*PLAIN, EQUAL)}
    cells = (row["model"], row["budget"], str(row["seed"]), *kl.values(), "" if best is None else f"{best:.2f}")
    return "| " + " | ".join(cells) + " |"


def page(record: dict[str, Any]) -> str:
    """The table, and the worst case."""
    rows = sorted(record["rows"], key=lambda row: (row["model"], float(row["budget"]), row["seed"]))
    ratios = [value for row in rows if (value := ratio(row)) is not None]
    facts = record["machine"]
    head = f"""# Guided against uniform, over draws of the calibration data

KL from the original on held-out data. Uniform: plain rounding and GPTQ, each in the best single format that fits the
budget (groups of 32, 64, 128; all bytes of the file counted). Guided: quick effort, in no more bytes than the better of
the two.
By `benchmarks/against_uniform.py` ({facts["cores"]} cores, {facts["system"]}).

Worst of {len(ratios)} cases: **{max(ratios, default=float("nan")):.2f}** times the uniform one's KL.

| model | budget, bits | seed | nearest | GPTQ | guided | guided / best uniform |
|---|---|---|---|---|---|---|
"""
    return head + "\n".join(map(line, rows)) + "\n"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="NAME=PATH")
    parser.add_argument("--data", action="append", default=[], help="NAME=FILE")
    parser.add_argument("--eval-data", action="append", default=[], help="NAME=FILE")
    parser.add_argument("--budgets", default="2.5,3.5")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workspace", type=Path, default=Path(tempfile.gettempdir()) / "guidedq-benchmark")
    parser.add_argument("--more", default="", help="further options of guidedq compare")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/against_uniform.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/uniform.md"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
