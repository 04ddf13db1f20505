"""How much memory a packed language model keeps, loaded and at work: the claim is its file's bytes, and activations.

    python benchmarks/resident_memory.py --original FOLDER --artifact FOLDER --fixed NEW_FOLDER --smallest FOLDER

transformers loads each model, in fp32 and in bf16, in a process of its own, which counts what it holds more than before
(frameworks are imported by then): pages of its own and pages of mapped files, as Linux shares them out among processes
(`Pss_Anon` and `Pss_File` of `/proc/self/smaps_rollup`). It counts again after a prompt and some tokens, with their
cache still there, and again when the C library was told to give freed blocks back (`malloc_trim`), so that only what
is in use is left. The peak is of both kinds (`VmHWM`), pages that other processes share counted whole.

Entropy-coded weights take more in memory than in the file, so `--fixed` has the artifact written anew, where it is not
there yet, with all its weights rounded to the nearest at 4 bits in groups of 64: it is as large as a good one of such a
format, and its quality is of no interest here. `--smallest` is a model of some hundred kilobytes, to show what
transformers and torch take for themselves. Writes `results/resident_memory.json`, `docs/memory.md` and
`docs/pictures/memory.png`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from records import Record, Row, write_page

PROMPT_TOKENS, NEW_TOKENS = 16, 32
DTYPES = ("float32", "bfloat16")
MEGABYTE = 1e6
FIXED_BITS, FIXED_GROUP = 4, 64
HEAD = """\
| model | dtype | file | loaded: own | of files | at work: own | of files | in all | given back: in all | peak |
|---|---|---|---|---|---|---|---|---|---|"""

PICTURE = "![megabytes held at work](pictures/memory.png)"
REMARKS = """\
- Packed weights of fixed widths stay where they are, in the mapped file, whose pages processes share, and which the
  system can drop and read again. None of them is copied.
- Entropy-coded weights are unpacked once, to narrow codes and patches; the file is then let go.
- At work come the cache, the outputs, and parts of weights that were dequantized for the prompt. These are freed, but
  the C library keeps their memory for the next prompt.
- While a model loads, all of its codes are checked, one weight's at a time: hence the peak.
- The last model shows what transformers and torch take for themselves."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", type=Path, required=True, help="its Hugging Face folder")
    parser.add_argument("--artifact", type=Path, required=True, help="a packed language model")
    parser.add_argument("--fixed", type=Path, help="a new folder")
    parser.add_argument("--smallest", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/resident_memory.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/memory.md"))
    arguments = parser.parse_args()
    if arguments.fixed and not arguments.fixed.exists():
        child("rounded", arguments.artifact, str(arguments.fixed))
    named = (arguments.original, arguments.artifact, arguments.fixed, arguments.smallest)
    folders: list[Path] = [folder for folder in named if folder]
    arguments.out.unlink(missing_ok=True)
    record = Record(arguments.out, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS)
    for folder in folders:
        for dtype in DTYPES:
            row = child("measured", folder, dtype)
            print(row, flush=True)
            record.add(row)
    write_page(arguments.page, page(record))
    draw(record.rows, arguments.page.parent / "pictures" / "memory.png")


def child(work: str, folder: Path, value: str) -> Row:
    """What a function of this file gives for a folder, in a process of its own."""
    command = [sys.executable, __file__, work, str(folder), value]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measured(folder: Path, dtype: str) -> Row:
    """Load a model, generate, and count memory."""
    import importlib

    import torch
    import transformers

    import guidedq
    from guidedq.memory import give_back

    importlib.import_module("guidedq.backends.packed_torch.placing")  # else imported while it loads
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    leaf = getattr(transformers, architecture)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = pages()
    model = leaf.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    loaded = pages()
    with torch.no_grad():
        outputs = model(input_ids=torch.arange(1, PROMPT_TOKENS + 1)[None], use_cache=True)
        for _ in range(NEW_TOKENS):
            chosen = outputs.logits[:, -1:].argmax(-1)
            outputs = model(input_ids=chosen, past_key_values=outputs.past_key_values, use_cache=True)
    working = pages()
    give_back()
    tidied = pages()
    return {
        "model": folder.name,
        "dtype": dtype,
        "file": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "loaded": {name: loaded[name] - before[name] for name in ("own", "of_files")},
        "working": {name: working[name] - before[name] for name in ("own", "of_files")},
        "given_back": {name: tidied[name] - before[name] for name in ("own", "of_files")},
        "peak": working["peak"] - before["held"],
        "versions": {
            "guidedq": guidedq.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def pages() -> dict[str, int]:
    """Memory of this process, in bytes; the peak is of both, pages that others share counted whole."""
    kinds = fields(Path("/proc/self/smaps_rollup"))
    peak = fields(Path("/proc/self/status"))["VmHWM"]
    return {"own": kinds["Pss_Anon"], "of_files": kinds["Pss_File"], "held": kinds["Rss"], "peak": peak}


def fields(path: Path) -> dict[str, int]:
    """Its lines that end in kB, in bytes."""
    lines = (line.split(":", 1) for line in path.read_text().splitlines() if line.endswith("kB"))
    return {name: int(rest.split()[0]) * 1024 for name, rest in lines}


def rounded(artifact: Path, out: str) -> Row:
    """Write an artifact's model with all packed weights rounded to the nearest in one format of a fixed width."""
    import torch
    from transformers import AutoModelForCausalLM

    import guidedq  # noqa: F401  # pyright: ignore[reportUnusedImport]  so that transformers knows the artifact
    from guidedq.artifacts.packed_weight import pack_weight
    from guidedq.artifacts.quantized_weight import QuantizedWeight, affine_segment
    from guidedq.backends.packed_torch.modules import PackedWeight
    from guidedq.quant.formats import AffineFormat
    from guidedq.quant.grid import grid_from_range, quantize_nearest

    format = AffineFormat(bits=FIXED_BITS, group_size=FIXED_GROUP)
    model: Any = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    for held in [module for module in model.modules() if isinstance(module, PackedWeight)]:
        weight, (rows, columns) = held.matrix(), held.layout.shape
        groups = weight.unflatten(1, (-1, FIXED_GROUP))
        grid = grid_from_range(groups.amin(2), groups.amax(2), format)
        none = torch.empty(rows, 0)
        codes = quantize_nearest(weight, grid, format)
        segment = affine_segment(format, torch.arange(rows), codes, grid, none.long(), none)
        held.blob = pack_weight(QuantizedWeight(name="w", shape=(rows, columns), segments=(segment,)))
        held.layout = PackedWeight(held.blob, "w", held.shape, transposed=held.transposed).layout
    model.save_pretrained(out)
    return {}


def page(record: Record) -> str:
    """The table as Markdown."""
    lines: list[str] = []
    for row in record.rows:
        loaded, working = row["loaded"], row["working"]
        sizes = [row["file"], *loaded.values(), *working.values(), sum(working.values())]
        sizes += [sum(row["given_back"].values()), row["peak"]]
        cells = [row["model"], row["dtype"], *(f"{size / MEGABYTE:.1f}" for size in sizes)]
        lines.append("| " + " | ".join(cells) + " |")
    machine, versions = record.content["machine"], record.rows[0]["versions"]
    intro = (
        "# Memory of a running packed model\n\n"
        f"Megabytes, by `benchmarks/resident_memory.py` ({machine['system']}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}, one thread); its docstring says how. At work: after a prompt of {PROMPT_TOKENS} "
        f"tokens and {NEW_TOKENS} more, their cache included."
    )
    return "\n\n".join([intro, PICTURE, "\n".join([HEAD, *lines]), REMARKS]) + "\n"


def draw(rows: list[Row], path: Path) -> None:
    """Bars of what each model holds at work, given back, beside its file and the peak of its loading."""
    from guidedq.report.drawing import save_figure
    from guidedq.report.palette import ACCENT, INK, MEASURED, MUTED
    from guidedq.report.plots import label_in_full, new_figure

    figure, axes = new_figure((7.0, 4.0))
    own, of_files = ([row["given_back"][kind] / MEGABYTE for row in rows] for kind in ("own", "of_files"))
    places = range(len(rows))
    axes.barh(places, own, color=ACCENT, height=0.6, label="own, at work")
    axes.barh(places, of_files, left=own, color=ACCENT, alpha=0.45, height=0.6, label="of mapped files, at work")
    axes.plot([row["file"] / MEGABYTE for row in rows], places, "|", color=INK, ms=16, mew=2, label="file")
    axes.plot([row["peak"] / MEGABYTE for row in rows], places, "D", color=MEASURED, ms=5, label="peak")
    axes.set_yticks(places, [f"{row['model']}, {row['dtype']}" for row in rows])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelcolor=MUTED)
    label_in_full(axes, "megabytes", "", "Memory of a running model")
    save_figure(figure, path)


if __name__ == "__main__":
    if sys.argv[1:2] in (["measured"], ["rounded"]):
        print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])))
    else:
        main()
