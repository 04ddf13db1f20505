"""Turn the record of `against_peers.py` into a page with tables and pictures.

    python benchmarks/peers_page.py benchmarks/results/peers.json docs/peers.md

One picture a model: KL against the bits of the linear layers, all bytes counted, on a logarithmic axis. Then guidedq's
rows against the best that another tool does with no fewer bits, and at most `REACH` more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from against_peers import COLUMNS, line

from guidedq.report.drawing import save_figure
from guidedq.report.palette import ACCENT, VARIANT_COLOURS
from guidedq.report.plots import new_figure

OURS = "guidedq"
MARKERS = "osD^vP*X"
REACH = 1.0
"""Bits by which another tool's model may be larger and still be compared."""


def main() -> None:
    """Draw and write."""
    source, page = Path(sys.argv[1]), Path(sys.argv[2])
    record = json.loads(source.read_text())
    rows = [row for row in record["rows"] if "error" not in row]
    models = list(dict.fromkeys(row["model"] for row in rows))
    parts = [
        "# Against other tools\n",
        "Linear layers only, all bytes counted for them (scales at 16 bits), the same tokens for all, KL and loss on "
        f"other text;\n`benchmarks/against_peers.py` on {machine_text(record)}. Versions stand in\n"
        f"`{source.as_posix()}`. Seconds: of the processor, all cores together; peak memory: of the process.\n"
        "Only the first of guidedq's runs with one effort collects guidance; its other budgets start from that one's "
        "workspace.\n",
    ]
    for model in models:
        mine = sorted((row for row in rows if row["model"] == model), key=lambda row: (row["tool"], row["bits"]))
        picture = page.parent / "pictures" / f"peers-{model}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw(mine, picture)
        head = "| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS)
        parts += [
            f"## {model}\n",
            f"![{model}](pictures/{picture.name})\n",
            comparison(mine),
            head,
            *map(line, mine),
            "",
        ]
    page.write_text("\n".join(parts), encoding="utf-8")


def comparison(rows: list[dict[str, Any]]) -> str:
    """A row for each of ours that another tool's model can be held against."""
    lines = ["| guidedq | bits | KL | best other, no smaller | bits | KL | ratio of KL |", "|" + "---|" * 7]
    for row in sorted((row for row in rows if row["tool"] == OURS), key=lambda row: (row["settings"], row["bits"])):
        others = [o for o in rows if o["tool"] != OURS and 0 <= o["bits"] - row["bits"] <= REACH]
        if others:
            best = min(others, key=lambda other: other["kl"])
            mine = f"| {row['settings']} | {row['bits']:.3f} | {row['kl']:.4g} "
            theirs = f"| {best['tool']}, {best['settings']} | {best['bits']:.3f} | {best['kl']:.4g} "
            lines.append(f"{mine}{theirs}| {row['kl'] / best['kl']:.2f} |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """One series a tool and kind of settings."""
    figure, axes = new_figure((7.0, 4.4))
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        series.setdefault(label_of(row), []).append((row["bits"], row["kl"]))
    others = [label for label in series if not label.startswith(OURS)]
    for label, points in series.items():
        ours = label.startswith(OURS)
        colour = ACCENT if ours else VARIANT_COLOURS[others.index(label) % len(VARIANT_COLOURS)]
        marker = MARKERS[list(series).index(label) % len(MARKERS)]
        bits, losses = zip(*sorted(points), strict=True)
        axes.plot(bits, losses, marker=marker, color=colour, linewidth=1.8 if ours else 0.9, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("bits per weight of the linear layers, all bytes counted")
    axes.set_ylabel("KL from the original, nats per token")
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def label_of(row: dict[str, Any]) -> str:
    """A tool, with what tells its series apart."""
    if row["tool"] == OURS:
        return f"{OURS} {row['settings']}"
    kind = row["settings"].rpartition(", ")[2]
    return f"{row['tool']}, {kind}" if kind.endswith("symmetric") else row["tool"]


def machine_text(record: dict[str, Any]) -> str:
    """The machine in words."""
    machine = record["machine"]
    return f"{machine['cores']} cores ({machine['system']}), {record['threads']} of them used"


if __name__ == "__main__":
    main()
