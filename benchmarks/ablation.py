"""What each technique is worth: compile models with one thing changed at a time, and tabulate the divergence.

    python benchmarks/ablation.py --model NAME=PATH --data NAME=FILE [--eval-data NAME=FILE] --budgets 3,3.5
        --out benchmarks/results/ablation.json --page docs/ablation.md

Runs what `compile_models.py` runs, each variant in a process of its own. What is found in the record is not run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from compile_models import run
from records import Record, Row, options, pairs, write_page

VARIANTS = {
    "standard effort": "standard:effort=standard",
    "without the quantized prefix": "no-prefix:effort=standard,correct=none",
    "without tuning": "no-tuning:effort=standard,tune=none",
    "quick effort (neither)": "quick:effort=quick",
    "quick, fixed widths": "fixed:effort=quick,coding=fixed",
    "quick, Hessian of the layer's error": "hessian:effort=quick,guide=hessian",
    "quick, Kronecker factors": "kfac:effort=quick,guide=kfac",
    "quick, four Hessians a site": "groups:effort=quick,guide=fisher{groups=4}",
    "quick, nearest rounding": "nearest:effort=quick,round=nearest",
    "quick, one format for all": "uniform:effort=quick,allocate=uniform",
    "thorough effort": "thorough:effort=thorough",
}


def main() -> None:
    """Run what is missing, write the record and the page after each."""
    arguments = parse_arguments()
    record = Record(arguments.out, seed=arguments.seed)
    for name, path in pairs(arguments.model).items():
        for variant in VARIANTS.values():
            for budget in arguments.budgets.split(","):
                label = variant.partition(":")[0]
                if record.has(model=name, variant=label, asked=budget):
                    continue
                record.add(row := run(name, path, variant, budget, arguments))
                print(name, label, budget, row.get("error") or row["report"]["measured"]["kl"], flush=True)
                write_page(arguments.page, page(record))
    write_page(arguments.page, page(record))


def page(record: Record) -> str:
    """The table: a row a variant, a column a model and budget; KL measured, and its ratio to the standard effort's."""
    rows = {(row["model"], row["variant"], row["asked"]): row for row in record.rows}
    columns = list(dict.fromkeys((row["model"], row["asked"]) for row in record.rows))
    head = ["", *(f"{model}, {budget} bits" for model, budget in columns)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for words, variant in VARIANTS.items():
        label = variant.partition(":")[0]
        cells = [cell(rows.get((m, label, b)), rows.get((m, "standard", b))) for m, b in columns]
        lines.append(f"| {' | '.join([words, *cells])} |")
    machine = record.content["machine"]
    facts = f"{machine['cores']} cores, {machine['system']}, seed {record.content['seed']}"
    return (
        "# What each technique is worth\n\n"
        "KL from the original on held-out data, at budgets that count every byte of the file; in brackets the ratio\n"
        f"to the standard effort's. By `benchmarks/ablation.py` ({facts}).\n\n" + "\n".join(lines) + "\n"
    )


def cell(row: Row | None, standard: Row | None) -> str:
    """One measurement."""
    if row is None or "error" in row:
        return "" if row is None else "not feasible"
    kl = row["report"]["measured"]["kl"]
    ratio = "" if standard is None or "error" in standard else f" ({kl / standard['report']['measured']['kl']:.2f})"
    return f"{kl:.4g}{ratio}"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = options(__doc__, budgets="3,3.5", out="ablation.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, default=Path("docs/ablation.md"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
