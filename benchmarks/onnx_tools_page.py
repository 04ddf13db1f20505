"""The page and the plot of what benchmarks/against_onnx_tools.py measured.

python benchmarks/onnx_tools_page.py --record benchmarks/results/onnx_tools.json --page docs/onnx_tools.md
    --plot docs/pictures/onnx-tools.png
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from against_onnx_tools import NOTHING
from records import Row, write_page

COLUMNS = ("by", "settings", "file kB", "of fp32", "loss", "agreement", "score", "latency", "load ms", "memory MB")
ABOUT = {
    "ResNet-20": "KL in nats an image, 2000 images of CIFAR-10; score: accuracy",
    "silero-vad": "half the relative squared error of the probability of speech, 1024 chunks; file op18_ifless",
    "silero-vad-branches": "the same of silero_vad.onnx, whose weights lie in the branches of an If",
    "stories260K-dynamo": "KL in nats a token, 96 x 128 tokens of stories; score: nats a token; dynamo exporter",
    "stories260K-torchscript": "the same by the TorchScript exporter",
    "GPT-2-small": "KL in nats a token, 96 x 128 tokens of Shakespeare; score: nats a token; 0.9M parameters, "
    "TorchScript exporter",
    "PP-OCRv4-cls": "KL in nats a line, 1024 lines; score: share of lines whose direction it tells",
    "PP-OCRv4-rec": "KL in nats a step, 160 lines of 40 steps; score: share of lines read without a mistake",
    "PP-OCRv4-det": "half the relative squared error of the map, 32 pages; agreement: pixels on the same side of 0.3",
    "magika": "KL in nats a file, 1024 files",
    "MiniLM-L6": "half the relative squared error of the states, 384 sentences; score: Spearman's correlation, STS-B",
    "whisper-tiny-encoder": "half the relative squared error of the states, 16 clips of half a minute",
    "whisper-tiny-decoder": "KL in nats a token, 16 clips, 40 tokens each",
}
COMPARED = 0.9
"""Of the original's bytes: files of more hold most weights in float, and are not compared in the summary."""
COLOURS = {"guidedq": "tab:red", "onnxruntime": "tab:blue", "nncf": "tab:green", "olive": "tab:orange"}


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, default=Path("benchmarks/results/onnx_tools.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/onnx_tools.md"))
    parser.add_argument("--plot", type=Path, default=Path("docs/pictures/onnx-tools.png"))
    arguments = parser.parse_args()
    content = json.loads(arguments.record.read_text())
    models = grouped(content["rows"])
    head, mark, rest = arguments.page.read_text(encoding="utf-8").partition("<!-- measured -->\n")
    assert mark, "the page has no line <!-- measured -->, after which the tables are written"
    del rest
    tables = "\n\n".join(section(name, rows) for name, rows in models.items())
    picture = f"pictures/{arguments.plot.name}"
    summary = f"{verdict_table(models)}\n\n![loss over bytes, all models and tools]({picture})"
    write_page(arguments.page, f"{head}{mark}\n{summary}\n\n{tables}\n")
    plot(models, arguments.plot)


def grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows by model, models in the order of `ABOUT`, rows by tool and size."""
    found = defaultdict[str, list[Row]](list)
    for row in rows:
        found[row["model"]].append(row)
    tools = ["original", *COLOURS]

    def place(row: Row) -> tuple[int, float, str]:
        return tools.index(row["tool"]), row.get("bytes", math.inf), row["settings"]

    return {name: sorted(found[name], key=place) for name in ABOUT if name in found}


def made(rows: Iterable[Row]) -> list[Row]:
    """Those of which a file came that runs."""
    return [row for row in rows if "loss" in row and row["tool"] != "original"]


def integers(row: Row) -> bool:
    """Whether activations are rounded on fixed grids."""
    return "static" in row["settings"] or row["settings"].startswith("quantize,") or row["settings"] == "quantize"


def best_ours(row: Row, rows: Iterable[Row]) -> Row | None:
    """Guidedq's file of least loss that has no more bytes than this one, and computes in integers if this does."""
    fits = (
        own
        for own in made(rows)
        if own["tool"] == "guidedq" and own["bytes"] <= row["bytes"] and (integers(own) or not integers(row))
    )
    return min(fits, key=lambda own: own["loss"], default=None)


def verdict_table(models: dict[str, list[Row]]) -> str:
    """Per model: against how many files guidedq has less loss at no more bytes, and against which it has not."""
    lines = ["| model | less loss at no more bytes | not so, or no file so small |", "|---|---|---|"]
    for name, rows in models.items():
        whole = next(row["bytes"] for row in rows if row["tool"] == "original")
        theirs = [row for row in made(rows) if row["tool"] != "guidedq" and row["bytes"] < COMPARED * whole]
        won, lost = 0, list[str]()
        for row in theirs:
            own = best_ours(row, rows)
            if own is not None and own["loss"] < row["loss"]:
                won += 1
            else:
                how = "nothing so small" if own is None else f"{own['loss']:.2g} against {row['loss']:.2g}"
                lost.append(f"{row['tool']} {row['settings']} ({row['bytes'] / 1000:,.0f} kB; {how})")
        lines.append(f"| {name} | {won} of {len(theirs)} | {'; '.join(lost)} |")
    return "\n".join(lines)


def section(name: str, rows: Sequence[Row]) -> str:
    """A model's table, what failed below it."""
    whole = next(row["bytes"] for row in rows if row["tool"] == "original")
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    failed, idle = list[str](), list[str]()
    for row in rows:
        said = f"{row['tool']} {row['settings']}"
        if "loss" in row:
            lines.append(line(row, whole))
        elif row["error"] == NOTHING:
            idle.append(said)
        else:
            failed.append(f"- {said}: {row['error']}")
    parts = [f"### {name}", f"{ABOUT[name]}.", "\n".join(lines)]
    if idle:
        parts.append(f"Nothing to quantize found: {'; '.join(idle)}.")
    if failed:
        parts.append("Did not run:\n\n" + "\n".join(failed))
    return "\n\n".join(parts)


def line(row: Row, whole: int) -> str:
    """One row of a table."""
    cells = (
        *(row["tool"], row["settings"], f"{row['bytes'] / 1000:,.1f}", f"{row['bytes'] / whole:.3f}"),
        *(f"{row['loss']:.3g}", "" if row["agreement"] is None else f"{row['agreement']:.4f}"),
        "" if row["score"] is None else f"{row['score']:.4f}",
        *(f"{row['latency']:.2f}", f"{1000 * row['load_seconds']:.0f}", f"{row['memory_bytes'] / 1e6:.0f}"),
    )
    return "| " + " | ".join(cells) + " |"


def plot(models: dict[str, list[Row]], path: Path) -> None:
    """Loss over bytes, a field for each model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 3
    count = -(-len(models) // columns)
    figure, axes = pyplot.subplots(count, columns, figsize=(13, 3.4 * count), squeeze=False)
    for axis in axes.flat[len(models) :]:
        axis.axis("off")
    for axis, (name, rows) in zip(axes.flat, models.items(), strict=False):
        whole = next(row["bytes"] for row in rows if row["tool"] == "original")
        for tool, colour in COLOURS.items():
            for fixed in (False, True):
                points = [
                    row for row in made(rows) if row["tool"] == tool and integers(row) is fixed and row["loss"] > 0
                ]
                if points:
                    shares = [row["bytes"] / whole for row in points]
                    axis.plot(
                        shares, [row["loss"] for row in points], "s" if fixed else "o", color=colour, alpha=0.75,
                        label=f"{tool}, static int8" if fixed else tool,
                    )  # fmt: skip
        axis.set(title=name, yscale="log", xlim=(0, 1))
    figure.supxlabel("bytes of the file, of fp32")
    figure.supylabel("loss: KL, or half the relative squared error")
    named = {label: mark for axis in axes.flat for mark, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(named.values()), list(named), loc="upper center", ncols=len(named), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(str(path), dpi=110)


if __name__ == "__main__":
    main()
