"""Budgets by loss: what was asked, what was forecast, what was measured, and the bytes that it took.

    python benchmarks/loss_budgets.py --model NAME=PATH --data NAME=FILE [--eval-data NAME=FILE]
        --budgets +0.02nats,+0.05nats --variant quick:effort=quick --out benchmarks/results/loss_budgets.json

Runs what `compile_models.py` runs, each compile in a process of its own. What is found in the record is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from compile_models import machine, run

ACCURACY, PERPLEXITY = "%", "x"
"""How the other two kinds of budget end."""


def main() -> None:
    """Run what is missing; write the record and the page after each."""
    arguments = parse_arguments()
    record: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
    record |= {"machine": machine(), "seed": arguments.seed}
    data = dict(item.split("=", 1) for item in arguments.data)
    evaluation = dict(item.split("=", 1) for item in arguments.eval_data)
    for model in arguments.model:
        name, _, path = model.partition("=")
        for budget in arguments.budgets.split(","):
            for variant in arguments.variant:
                case = {"model": name, "asked": budget, "variant": variant.partition(":")[0]}
                if any(case.items() <= row.items() for row in record["rows"]):
                    continue
                row = run(name, path, variant, budget, data.get(name), evaluation.get(name), arguments)
                row.get("report", {}).pop("curve", None)
                record["rows"].append(row | case)
                print(line(record["rows"][-1]), flush=True)
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(record, indent=1) + "\n")
                arguments.page.write_text(page(record), encoding="utf-8")


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    asked = (row["model"], row["variant"], row["asked"])
    if "error" in row:
        return "| " + " | ".join(asked) + f" | {' '.join(row['error'])} | | | | |"
    forecast, found = row["report"]["forecast"], row["report"]["measured"]
    if row["asked"].endswith(ACCURACY):
        drops = [forecast[f"accuracy_drop{end}"] for end in ("", "_high", "_low")]
        drops.append(found["accuracy_before"] - found["accuracy_after"])
        spoken = [f"{-100 * drop:+.2f}%" for drop in drops]
    else:
        increases = [forecast[f"loss_increase{end}"] for end in ("", "_low", "_high")]
        increases.append(found["loss_after"] - found["loss_before"])
        ratio = row["asked"].endswith(PERPLEXITY)
        spoken = [f"{math.exp(value):.4f}x" if ratio else f"{value:+.4f}" for value in increases]
    again = "yes" if any("solved again" in notice for notice in row["report"]["notices"]) else ""
    sizes = (f"{row['bytes']:,}", f"{row['bits']:.3f}")
    return "| " + " | ".join((*asked, f"{spoken[0]} ({spoken[1]} to {spoken[2]})", spoken[3], *sizes, again)) + " |"


def page(record: dict[str, Any]) -> str:
    """The table."""
    facts = record["machine"]
    return f"""# Budgets by loss

`guidedq compile MODEL --budget +0.02nats` looks for the smallest file whose forecast stays within the budget with the
upper end of its 90% interval, and measures it. Asked, forecast (the interval in brackets), measured on held-out data,
bytes. *Again*: the measurement missed the budget, and it was solved once more with what was measured.
By `benchmarks/loss_budgets.py` ({facts["cores"]} cores, {facts["system"]}, seed {record["seed"]}).

| model | effort | asked | forecast | measured | bytes | bits per weight | again |
|---|---|---|---|---|---|---|---|
""" + "".join(line(row) + "\n" for row in record["rows"])


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="NAME=PATH")
    parser.add_argument("--data", action="append", default=[], help="NAME=FILE")
    parser.add_argument("--eval-data", action="append", default=[], help="NAME=FILE")
    parser.add_argument("--budgets", default="+0.02nats,+0.05nats")
    parser.add_argument("--variant", action="append", default=None, help="label:setting,setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workspace", type=Path, default=Path(tempfile.gettempdir()) / "guidedq-benchmark")
    parser.add_argument("--more", default="", help="further options of guidedq compile")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loss_budgets.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/loss_budgets.md"))
    parsed = parser.parse_args()
    parsed.variant = parsed.variant or ["quick:effort=quick"]
    return parsed


if __name__ == "__main__":
    main()
