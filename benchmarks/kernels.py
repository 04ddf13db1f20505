"""How fast packed weights are multiplied: against the machine's bandwidth, torch's fp32 layers, and plain torch.

    python benchmarks/kernels.py --artifact FOLDER --original FOLDER

Square layers with one input (decoding) and 128 (a prompt); then tokens a second of a packed language model and of its
original in fp32. Everything that is compared runs turn by turn in one process, and the least time of each counts, for
the machine's other work only adds. The bandwidth is what torch's sum, or its fp32 layer, reads a second: from a buffer
as large as the packed weight, so from the same cache or memory. Writes `results/kernels.json`, `docs/kernels.md` and
`docs/pictures/kernels.png`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's waiting threads take no core from working ones

import torch
from records import Record, Row, write_page
from torch import Tensor, nn

import guidedq
from guidedq.artifacts.packed_weight import pack_weight
from guidedq.artifacts.quantized_weight import EntropySegment, QuantizedWeight
from guidedq.backends.packed_torch import kernels
from guidedq.backends.packed_torch.modules import PackedLinear, PackedWeight
from guidedq.backends.packed_torch.native.library import library
from guidedq.quant.exponents import ONE
from guidedq.quant.formats import ENTROPY_ZERO, AffineFormat, EntropyFormat, FloatFormat, Format
from guidedq.quant.packing import blob_bytes, read_layout, region_widths, write_header
from guidedq.report.drawing import save_figure
from guidedq.report.palette import MUTED, PAPER, VARIANT_COLOURS
from guidedq.report.plots import label_in_full, new_figure

SIZES = (2048, 4096, 8192)
THREADS = (1, 2)
FORMATS: tuple[Format, ...] = (
    *(AffineFormat(bits=bits, group_size=64) for bits in (2, 3, 4, 5, 6, 8)),
    EntropyFormat(bits=3.0),
    FloatFormat(dtype="fp16"),
)
PROMPT_INPUTS = 128
PROMPT_FORMATS = (AffineFormat(bits=4, group_size=64), EntropyFormat(bits=3.0))
PROMPT_TOKENS, NEW_TOKENS = 16, 32
SLOWEST_SIZE = 4096
"""Beyond, plain torch arithmetic takes a second for one product: it is not timed; nor on several threads."""
GOALS = {2: 0.6, 3: 0.6, 4: 0.8, 5: 0.6, 6: 0.6, 8: 0.8}
"""Of the bandwidth, by bits of a code."""
HEADS = {
    "one": "| columns and rows | threads | format | bytes | microseconds | GB/s | of the bandwidth | "
    "times as fast as fp32 | times as fast as plain torch |",
    "prompt": "| columns and rows | threads | format | milliseconds | fp32 | times as fast as fp32 |",
    "tokens": "| threads | packed, kernels | packed, plain torch | original, fp32 | kernels against fp32 |",
}

PICTURE = "pictures/kernels.png"
SHARED = """\
## Threads

A second thread is woken where each has at least 384 KiB of a weight. `benchmarks/thread_work.py` multiplied 4-bit
weights on one thread and on two, in turn, whatever their size (figures in `benchmarks/results/thread_work.json`;
AVX-512 VNNI, two cores, load 0.4). Two threads took, in the median, 1.2 to 1.3 of the time of one at 256 KiB, 0.8 (576
columns) and 1.0 (2048) at 768 KiB, 0.75 and 0.80 at 2 MiB; waking costs 10 microseconds, which a busy second core
never gives back. So the layers of a model of SmolLM2-135M's size run on one thread, its head on two. The tables above
are older: there two threads shared from 256 KiB on."""
GPU = """\
## On a GPU

On a GPU, Triton kernels (`backends/packed_torch/triton_kernels.py`) read the same bytes: up to 8 inputs are multiplied
by a weight as it lies, for more it is dequantized for torch's product. They ran in Triton's interpreter only (3.9), not
on a GPU, and nothing is known of their speed. In the interpreter they give the reference's numbers and read no byte
beyond the weight's; Triton compiles them for compute capability 8.0. Where Triton is missing or starts no
kernel, plain torch does the work."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="a packed language model")
    parser.add_argument("--original", type=Path, help="its Hugging Face folder")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kernels.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/kernels.md"))
    arguments = parser.parse_args()
    native = library()
    if native is None:
        raise SystemExit("The kernels were not built: there is nothing to measure. Install a C compiler, then guidedq.")
    versions = {"torch": torch.__version__, "guidedq": guidedq.__version__}
    arguments.out.unlink(missing_ok=True)
    record = Record(
        arguments.out, instruction_set=native.instruction_sets[0], versions=versions, seed=0, load=os.getloadavg()
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for size in SIZES:
            for threads in THREADS:
                torch.set_num_threads(threads)
                layers(size, threads, arguments.repeats, record)
        if arguments.artifact and arguments.original:
            decoding(arguments.artifact, arguments.original, record)
    write_page(arguments.page, page(record))
    draw(record, arguments.page.parent / "pictures" / "kernels.png")


def layers(size: int, threads: int, repeats: int, record: Record) -> None:
    """One input and many through a square layer in each format."""
    whole = torch.randn(size, size)
    one, many = torch.randn(1, size), torch.randn(PROMPT_INPUTS, size)
    for format in FORMATS:
        layer = PackedLinear(random_packed(format, size), None)
        packed = layer.packed
        assert isinstance(packed, PackedWeight)
        held = packed.blob.numel()
        buffer = torch.ones(held // 4)
        works: dict[str, Callable[[], Any]] = {
            "sum": lambda buffer=buffer: buffer.sum(),
            "fp32": lambda: nn.functional.linear(one, whole),
            "kernels": lambda layer=layer: layer(one),
        }
        if format in PROMPT_FORMATS:
            works["fp32, prompt"] = lambda: nn.functional.linear(many, whole)
            works["kernels, prompt"] = lambda layer=layer: layer(many)
        seconds = least(works, repeats)
        if size <= SLOWEST_SIZE and threads == 1:
            seconds |= least({"plain torch": lambda layer=layer: plainly(layer, one)}, 2)
        limit = max(held / seconds["sum"], whole.nbytes / seconds["fp32"] if whole.nbytes <= 2 * held else 0.0)
        row: Row = {"kind": "layer", "size": size, "threads": threads, "format": str(format), "bytes": held}
        row |= {"bandwidth": limit, "of_bandwidth": held / seconds["kernels"] / limit, "seconds": seconds}
        print(row, flush=True)
        record.add(row)


def random_packed(format: Format, columns: int, rows: int | None = None) -> PackedWeight:
    """A weight of random codes, with scales such that no number is too large; square if no rows are given."""
    rows = rows or columns
    if isinstance(format, EntropyFormat):
        coded = pack_weight(random_entropy(format, columns))
        return PackedWeight(coded, "random", (columns, columns), transposed=False)
    held = torch.randint(0, 256, (blob_bytes(columns, [(format, rows)]),), dtype=torch.uint8)
    header = write_header([(format, rows)], columns, scaled=False)
    held[: len(header)] = torch.tensor(list(header), dtype=torch.uint8)
    (part,) = read_layout(held, "random", (rows, columns)).segments
    widths = region_widths(format, columns)
    if isinstance(format, AffineFormat):
        start = part.offset + rows * widths[0]
        held[start : start + rows * widths[1]] = halves(rows * widths[1] // 2)
    else:
        held[part.offset :] = halves(rows * columns)
    return PackedWeight(held, "random", (rows, columns), transposed=False)


def random_entropy(format: EntropyFormat, size: int) -> QuantizedWeight:
    """The codes of Gaussian weights."""
    codes = torch.randn(size, size).div_(format.step).round_().clamp_(-ENTROPY_ZERO, ENTROPY_ZERO - 1)
    segment = EntropySegment(
        format=format,
        rows=torch.arange(size),
        codes=codes.add_(ENTROPY_ZERO).to(torch.uint8),
        row_exponents=torch.full((size,), ONE, dtype=torch.uint8),
        column_exponents=torch.full((size,), ONE, dtype=torch.uint8),
    )
    return QuantizedWeight(name="random", shape=(size, size), segments=(segment,))


def halves(count: int) -> Tensor:
    """The bytes of random positive fp16 numbers."""
    return torch.rand(count).add_(0.01).half().view(torch.uint8)


def least(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The least seconds of each piece of work, all done turn by turn."""
    found = dict.fromkeys(works, float("inf"))
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            found[name] = min(found[name], time.perf_counter() - start)
    return found


def plainly(module: nn.Module, *inputs: Any, **options: Any) -> Any:
    """Run a module as if the kernels had not been built."""
    kernels.library = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return module(*inputs, **options)
    finally:
        kernels.library = library


def decoding(artifact: Path, original: Path, record: Record) -> None:
    """Tokens a second, greedily, after a short prompt; the time of the prompt is not counted."""
    from transformers import AutoModelForCausalLM

    packed = guidedq.load_quantized(str(artifact))
    whole = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32).eval()
    for threads in THREADS:
        torch.set_num_threads(threads)
        run = {"kernels": lambda: step_seconds(packed, NEW_TOKENS), "fp32": lambda: step_seconds(whole, NEW_TOKENS)}
        best = dict.fromkeys(run, float("inf"))
        for _ in range(3):
            for name, work in run.items():
                best[name] = min(best[name], work())
        kernels.library = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
        best["plain torch"] = step_seconds(packed, 3)
        kernels.library = library
        row: Row = {"kind": "decoding", "artifact": artifact.name, "model": original.name, "threads": threads}
        row |= {"tokens_per_second": {name: 1 / seconds for name, seconds in best.items()}}
        print(row, flush=True)
        record.add(row)


def step_seconds(model: Any, tokens: int) -> float:
    """The median seconds of a token."""
    taken: list[float] = []
    outputs = model(input_ids=torch.arange(1, PROMPT_TOKENS + 1)[None], use_cache=True)
    for _ in range(tokens):
        chosen = outputs.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        outputs = model(input_ids=chosen, past_key_values=outputs.past_key_values, use_cache=True)
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]


def page(record: Record) -> str:
    """The tables as Markdown."""
    one, prompt, tokens = [], [], []
    for row in record.rows:
        if row["kind"] == "decoding":
            speed = row["tokens_per_second"]
            cells = [row["threads"], *(f"{speed[name]:.1f}" for name in ("kernels", "plain torch", "fp32"))]
            tokens.append([*cells, f"{speed['kernels'] / speed['fp32']:.2f}"])
            continue
        seconds, cells = row["seconds"], [row["size"], row["threads"], row["format"]]
        mine, plain = seconds["kernels"], seconds.get("plain torch")
        speed = [f"{row['bytes'] / mine / 1e9:.1f}", f"{row['of_bandwidth']:.2f}", f"{seconds['fp32'] / mine:.2f}"]
        one.append([*cells, row["bytes"], f"{mine * 1e6:.0f}", *speed, f"{plain / mine:.0f}" if plain else ""])
        if "kernels, prompt" in seconds:
            times = [seconds["kernels, prompt"], seconds["fp32, prompt"]]
            prompt.append([*cells, *(f"{value * 1e3:.1f}" for value in times), f"{times[1] / times[0]:.2f}"])
    content = record.content
    machine = f"{content['machine']['cores']} cores, {content['machine']['system']}, {content['instruction_set']}"
    parts = [
        "# The kernels of the packed PyTorch artifact",
        f"By `benchmarks/kernels.py` ({machine}, torch {content['versions']['torch']}); its docstring says how. "
        "The figures are in `benchmarks/results/kernels.json`. "
        f"Other work on the machine (load {content['load'][0]:.1f} at the start) disturbs all, two threads most.",
        f"## One input\n\n![share of the bandwidth, and speed beside fp32]({PICTURE})\n\n{table(HEADS['one'], one)}",
        f"## {PROMPT_INPUTS} inputs\n\n{table(HEADS['prompt'], prompt)}",
    ]
    if tokens:
        model = next(row["model"] for row in record.rows if row["kind"] == "decoding")
        parts.append(f"## Tokens a second, {model}\n\n{table(HEADS['tokens'], tokens)}")
    parts += [SHARED, GPU, "What a running model keeps in memory: `memory.md`."]
    return "\n\n".join(parts) + "\n"


def draw(record: Record, path: Path) -> None:
    """One input: the share of the bandwidth, with its goals, and the speed beside fp32, by what a weight takes."""
    figure, (shares, speeds) = new_figure((7.0, 6.4), rows=2, sharex=True)
    rows = [row for row in record.rows if row["kind"] == "layer"]
    for size, colour in zip(SIZES, VARIANT_COLOURS[1:], strict=False):
        for threads, line in zip(THREADS, ("-", "--"), strict=True):
            mine = [row for row in rows if (row["size"], row["threads"]) == (size, threads)]
            widths = [8 * row["bytes"] / size**2 for row in mine]
            style = {"color": colour, "linestyle": line, "linewidth": 1.4, "marker": "o", "markersize": 4}
            label = f"{size} square, {threads} thread{'s' if threads > 1 else ''}"
            for axes, values in (
                (shares, [row["of_bandwidth"] for row in mine]),
                (speeds, [row["seconds"]["fp32"] / row["seconds"]["kernels"] for row in mine]),
            ):
                fixed = [place for place, row in enumerate(mine) if row["format"].startswith("affine")]
                axes.plot([widths[i] for i in fixed], [values[i] for i in fixed], **style, label=label)
                coded = [place for place, row in enumerate(mine) if row["format"].startswith("entropy")]
                axes.plot([widths[i] for i in coded], [values[i] for i in coded], "s", mfc=PAPER, mec=colour, ms=5)
    held = {row["format"]: 8 * row["bytes"] / row["size"] ** 2 for row in rows}
    goals = [(held[f"affine{{bits={bits} group-size=64}}"], goal) for bits, goal in GOALS.items()]
    shares.plot(*zip(*goals, strict=True), "_", color=MUTED, ms=14, mew=2, label="goal")
    shares.set_ylim(0, 1)
    speeds.set_ylim(bottom=0)
    speeds.set_xlabel("bits per weight in memory (hollow: entropy-coded in the file)")
    label_in_full(shares, "", "of the bandwidth", "One input through a square layer")
    shares.get_legend().set(bbox_to_anchor=(1.0, 1.0), loc="upper left")
    speeds.set_ylabel("times as fast as fp32")
    save_figure(figure, path)


def table(head: str, rows: list[list[Any]]) -> str:
    """A Markdown table."""
    rule = "|" + "---|" * (head.count("|") - 1)
    return "\n".join([head, rule, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


if __name__ == "__main__":
    main()
