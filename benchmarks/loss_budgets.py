"""Budgets by loss: what was asked, what was forecast, what was measured, and the bytes that it took.

    python benchmarks/loss_budgets.py --model NAME=PATH --data NAME=FILE [--eval-data NAME=FILE]
        --budgets +0.02nats,+0.05nats --variant quick:effort=quick --out benchmarks/results/loss_budgets.json

Runs what `compile_models.py` runs, each compile in a process of its own. What is found in the record is not run again.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from compile_models import run
from records import Record, Row, options, pairs, write_page

ACCURACY, PERPLEXITY = "%", "x"
"""How the other two kinds of budget end."""


def main() -> None:
    """Run what is missing; write the record and the page after each."""
    arguments = parse_arguments()
    record = Record(arguments.out, seed=arguments.seed)
    for name, path in pairs(arguments.model).items():
        for budget in arguments.budgets.split(","):
            for variant in arguments.variant:
                case = {"model": name, "asked": budget, "variant": variant.partition(":")[0]}
                if record.has(**case):
                    continue
                row = run(name, path, variant, budget, arguments)
                row.get("report", {}).pop("curve", None)
                record.add(row | case)
                print(line(record.rows[-1]), flush=True)
                write_page(arguments.page, page(record))
    write_page(arguments.page, page(record))


def line(row: Row) -> str:
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


def page(record: Record) -> str:
    """The table."""
    facts = record.content["machine"]
    return f"""# Budgets by loss

`guidedq compile MODEL --budget +0.02nats` looks for the smallest file whose forecast stays within the budget with the
upper end of its 90% interval, and measures it. Asked, forecast (the interval in brackets), measured on held-out data,
bytes. *Again*: the measurement missed the budget, and it was solved once more with what was measured.
By `benchmarks/loss_budgets.py` ({facts["cores"]} cores, {facts["system"]}, seed {record.content["seed"]}).

| model | effort | asked | forecast | measured | bytes | bits per weight | again |
|---|---|---|---|---|---|---|---|
""" + "".join(line(row) + "\n" for row in record.rows)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = options(__doc__, budgets="+0.02nats,+0.05nats", out="loss_budgets.json")
    parser.add_argument("--variant", action="append", default=None, help="label:setting,setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, default=Path("docs/loss_budgets.md"))
    parsed = parser.parse_args()
    parsed.variant = parsed.variant or ["quick:effort=quick"]
    return parsed


if __name__ == "__main__":
    main()
