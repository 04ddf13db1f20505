"""How much faster packed weights are multiplied by inputs rounded to int8 than by the same in fp32.

    python benchmarks/integer_kernels.py

Square layers of fixed widths with a few inputs, one thread, both turn by turn in one process, the least time of each.
The error is that of the products, relative to those of the inputs as they were: normal random numbers. Writes
`results/integer_kernels.json`, `docs/integers.md` and `docs/pictures/integers.png`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from kernels import least, random_packed, table
from records import Record, Row, write_page

import guidedq
from guidedq.backends.packed_torch.native.calls import multiply_rows
from guidedq.backends.packed_torch.native.library import Library, library
from guidedq.quant.formats import AffineFormat
from guidedq.report.drawing import save_figure
from guidedq.report.palette import MUTED, VARIANT_COLOURS
from guidedq.report.plots import label_in_full, new_figure

SIZES, BITS, INPUTS = (2048, 4096), (2, 3, 4, 5, 6), (1, 4)
HEAD = "| columns and rows | inputs | bits | fp32, microseconds | int8 | times as fast | of the bandwidth | error |"
PAGE = """\
# Inputs rounded to int8

    guidedq compile MODEL --budget 4bits --activations int8 --out small

Linear layers of a packed PyTorch model then round what they multiply: each call anew, 64 columns share a scale, and the
largest of them becomes 127. Codes in groups of 64, or a multiple, are multiplied in integers: those of 2 to 6 bits
where the processor has AVX2, all where it has AVX-512 VNNI. All else multiplies the rounded numbers in float, so the
result is the same everywhere but for the order of float32 sums. Codes have fixed widths then. With AVX-512 VNNI inputs
that are not rounded are multiplied in integers too, as 24-bit numbers, so there is less to gain. The forecast and the
measurement of `compile --activations int8` count the rounding, and the folder that it writes says so: it is read as it
was measured. A folder of fixed widths that does not say so can be read that way too:
`guidedq.load_quantized("small", activations="int8")`.
Embeddings, convolutions and nested weights stay in float, and there are no such kernels for NEON and GPUs.

`benchmarks/integer_kernels.py` wrote this page ({machine}, one thread, load {load:.1f} at the start).

![speed beside inputs that are not rounded](pictures/integers.png)"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/integer_kernels.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/integers.md"))
    arguments = parser.parse_args()
    kernels = library()
    if kernels is None:
        raise SystemExit("The kernels were not built: there is nothing to measure. Install a C compiler, then guidedq.")
    versions = {"torch": torch.__version__, "guidedq": guidedq.__version__}
    arguments.out.unlink(missing_ok=True)
    record = Record(arguments.out, versions=versions, seed=0, load=os.getloadavg())
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = [layer(kernels, size, count, bits, arguments.repeats) for size in SIZES for count in INPUTS for bits in BITS]
    for row in rows:
        record.add(row)
    machine = f"{record.content['machine']['system']}, {kernels.instruction_sets[0]}"
    text = PAGE.format(machine=machine, load=record.content["load"][0])
    write_page(arguments.page, f"{text}\n\n{table(HEAD, [cells(row) for row in rows])}\n")
    draw(rows, arguments.page.parent / "pictures" / "integers.png")


def layer(kernels: Library, size: int, count: int, bits: int, repeats: int) -> Row:
    """One square layer."""
    packed, inputs = random_packed(AffineFormat(bits=bits, group_size=64), size), torch.randn(count, size)
    given = (kernels, packed.description, packed.blob, packed.listed, inputs)
    buffer = torch.ones(packed.blob.numel() // 4)
    works = {
        "sum": buffer.sum,
        "fp32": lambda: multiply_rows(*given),
        "int8": lambda: multiply_rows(*given, integers=True),
    }
    exact = works["fp32"]()
    error = float((works["int8"]() - exact).norm() / exact.norm())
    row: Row = {"size": size, "inputs": count, "bits": bits, "seconds": least(works, repeats), "error": error}
    print(row, flush=True)
    return row


def cells(row: Row) -> list[str]:
    """A row of the table."""
    seconds = row["seconds"]
    ratio, share = seconds["fp32"] / seconds["int8"], seconds["sum"] / seconds["int8"]
    times = [f"{seconds[name] * 1e6:.0f}" for name in ("fp32", "int8")]
    named = [str(row[name]) for name in ("size", "inputs", "bits")]
    return [*named, *times, f"{ratio:.2f}", f"{share:.2f}", f"{row['error']:.4f}"]


def draw(rows: list[Row], path: Path) -> None:
    """How many times as fast, by bits of a code."""
    figure, axes = new_figure((6.0, 3.7))
    kinds = [(size, inputs) for size in SIZES for inputs in INPUTS]
    for (size, inputs), colour in zip(kinds, VARIANT_COLOURS, strict=False):
        mine = [row for row in rows if (row["size"], row["inputs"]) == (size, inputs)]
        times = [row["seconds"]["fp32"] / row["seconds"]["int8"] for row in mine]
        label = f"{size} square, {inputs} input{'s' if inputs > 1 else ''}"
        axes.plot([row["bits"] for row in mine], times, "-o", color=colour, linewidth=1.8, ms=5, label=label)
    axes.axhline(1.0, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_ylim(bottom=0)
    axes.set_xticks(BITS)
    label_in_full(axes, "bits of a code", "times as fast as fp32 inputs", "Inputs rounded to int8")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
