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
import sys
from pathlib import Path

from records import Record, Row, options, pairs, timed, write_page

PLAIN, EQUAL = ("nearest", "gptq"), "guided-equal"


def main() -> None:
    """Run what is missing; write the record and the page after each."""
    arguments = parse_arguments()
    record = Record(arguments.out)
    for name, path in pairs(arguments.model).items():
        for seed in map(int, arguments.seeds.split(",")):
            for budget in arguments.budgets.split(","):
                key = {"model": name, "seed": seed, "budget": budget}
                if record.has(**key):
                    continue
                record.add(key | compared(name, path, budget, seed, arguments))
                print(line(record.rows[-1]), flush=True)
                write_page(arguments.page, page(record))
    write_page(arguments.page, page(record))


def compared(name: str, path: str, budget: str, seed: int, arguments: argparse.Namespace) -> Row:
    """Size and KL of every variant, or what went wrong."""
    data, evaluation = pairs(arguments.data).get(name), pairs(arguments.eval_data).get(name)
    command = [
        *(sys.executable, "-m", "guidedq", "compare", path, "--budget", f"{budget}bits", "--json", "--effort", "quick"),
        *("--seed", str(seed), "--workspace", str(arguments.workspace), *arguments.more.split()),
        *(("--data", data) if data else ()), *(("--eval-data", evaluation) if evaluation else ()),
    ]  # fmt: skip
    done = timed(command).done
    if done.returncode:
        return {"error": " ".join(done.stderr.strip().splitlines()[-1:])}
    variants = json.loads(done.stdout)["variants"]
    return {"variants": {one["name"]: {"bytes": one["file_bytes"], "kl": one["measured"]["kl"]} for one in variants}}


def ratio(row: Row) -> float | None:
    """KL of the guided model over that of the best plain uniform one, in no more bytes."""
    variants = row.get("variants", {})
    if EQUAL not in variants:
        return None
    return variants[EQUAL]["kl"] / min(variants[name]["kl"] for name in PLAIN)


def line(row: Row) -> str:
    """One row of the table."""
    if row.get("error"):
        return f"| {row['model']} | {row['budget']} | {row['seed']} | {row['error']} | | | |"
    if not any(name in row["variants"] for name in PLAIN):
        alone = f"{row['variants']['guided']['kl']:.4g}"
        return f"| {row['model']} | {row['budget']} | {row['seed']} | none is so small | | {alone} | |"
    variants, best = row["variants"], ratio(row)
    kl = {name: f"{variants[name]['kl']:.4g}" if name in variants else "" for name in (*PLAIN, EQUAL)}
    cells = (row["model"], row["budget"], str(row["seed"]), *kl.values(), "" if best is None else f"{best:.2f}")
    return "| " + " | ".join(cells) + " |"


def page(record: Record) -> str:
    """The table, and the worst case."""
    rows = sorted(record.rows, key=lambda row: (row["model"], float(row["budget"]), row["seed"]))
    ratios = [value for row in rows if (value := ratio(row)) is not None]
    facts = record.content["machine"]
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
    parser = options(__doc__, budgets="2.5,3.5", out="against_uniform.json")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--page", type=Path, default=Path("docs/uniform.md"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
