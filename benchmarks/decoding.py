"""How fast a packed language model decodes, beside its original and beside other runtimes, at the bytes of each file.

    python benchmarks/decoding.py --original FOLDER --artifact FOLDER --artifact FOLDER … --genai FOLDER … --gguf FILE …
        --llama-python PYTHON

Every runtime loads its model in a process of its own; then they decode in turn, a few tokens each, round after round,
so that other work on the machine disturbs all alike. What counts is the median time of a token, greedily decoded after
a prompt of 16 tokens. `--llama-python` is an interpreter that has `llama-cpp-python`; `--genai` are folders for
onnxruntime-genai (`python -m onnxruntime_genai.models.builder -p int4 -e cpu` writes ORT's own 4 bits). Writes
`results/decoding.json`, `docs/decoding.md` and `docs/pictures/decoding.png`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

PROMPT = list(range(1, 17))
NEW_TOKENS, ROUNDS = 16, 8
HEAD = "| runtime | model | megabytes | threads | tokens a second | of fp32 |"
REMARKS = """\
- Megabytes are those of the weights' file or files.
- transformers' own work for each token, in Python, is part of the rows of guidedq and of transformers; llama.cpp and
  onnxruntime-genai have none. The smaller the model, the more it weighs."""

PICTURE = "![tokens a second](pictures/decoding.png)"
Step = Callable[[], None]


def main() -> None:
    """Measure, print, write; or be one of the processes that decode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", help="a Hugging Face folder")
    parser.add_argument("--artifact", action="append", default=[], help="a packed language model; several may be given")
    parser.add_argument("--genai", action="append", default=[], help="a folder for onnxruntime-genai")
    parser.add_argument("--gguf", action="append", default=[], help="a file for llama.cpp")
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--threads", type=int, action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decoding.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/decoding.md"))
    parser.add_argument("--child", nargs=3, metavar=("RUNTIME", "MODEL", "THREADS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Start the processes, let them decode in turn, write the table."""
    from records import Record, Row, write_page

    models = [("transformers fp32", arguments.original), ("transformers bf16", arguments.original)]
    models += [("guidedq", path) for path in arguments.artifact]
    models += [("onnxruntime-genai", path) for path in arguments.genai]
    models += [("llama.cpp", path) for path in arguments.gguf]
    arguments.out.unlink(missing_ok=True)
    record = Record(arguments.out, versions=versions(arguments.llama_python), seed=0, load=os.getloadavg())
    for threads in arguments.threads or (1, 2):
        children = [start(runtime, path, threads, arguments.llama_python) for runtime, path in models]
        seconds: list[list[float]] = [[] for _ in models]
        for _ in range(ROUNDS):
            for process, found in zip(children, seconds, strict=True):
                found.extend(json.loads(ask(process)))
        for process in children:
            process.stdin.close()
            process.wait()
        for (runtime, path), found in zip(models, seconds, strict=True):
            row: Row = {"runtime": runtime, "model": Path(path).name, "bytes": weight_bytes(Path(path))}
            row |= {"threads": threads, "seconds": median(found)}
            print(row, flush=True)
            record.add(row)
    write_page(arguments.page, page(record))
    draw(record.rows, arguments.page.parent / "pictures" / "decoding.png")


def start(runtime: str, path: str, threads: int, llama_python: str) -> Any:
    """A process that has its model loaded."""
    python = llama_python if runtime == "llama.cpp" else sys.executable
    command = [python, __file__, "--child", runtime, path, str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    if ask(process, wake=False) != "ready\n":
        raise SystemExit(f"{runtime} could not load {path}.")
    return process


def ask(process: Any, *, wake: bool = True) -> str:
    """The next line that a process writes, woken first if so said."""
    if wake:
        process.stdin.write("\n")
        process.stdin.flush()
    line: str = process.stdout.readline()
    return line


def child(runtime: str, path: str, threads: str) -> None:
    """Load a model; at each line that comes, decode some tokens and say how long each took."""
    if runtime == "llama.cpp":
        prompt, step = llama(path, int(threads))
    elif runtime == "onnxruntime-genai":
        prompt, step = genai(path, int(threads))
    else:
        prompt, step = torch_model(runtime, path, int(threads))
    decode(prompt, step)
    print("ready", flush=True)
    while sys.stdin.readline():
        print(json.dumps(decode(prompt, step)), flush=True)


def decode(prompt: Step, step: Step) -> list[float]:
    """Seconds of each token after the prompt."""
    prompt()
    found: list[float] = []
    for _ in range(NEW_TOKENS):
        begun = time.perf_counter()
        step()
        found.append(time.perf_counter() - begun)
    return found


def torch_model(runtime: str, path: str, threads: int) -> tuple[Step, Step]:
    """A model in transformers, packed or not."""
    import torch
    from transformers import AutoModelForCausalLM

    import guidedq

    torch.set_num_threads(threads)
    if runtime == "guidedq":
        model: Any = guidedq.load_quantized(path)
    else:
        dtype = torch.bfloat16 if runtime.endswith("bf16") else torch.float32
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    state: dict[str, Any] = {}

    @torch.no_grad()
    def run(tokens: Any, cache: Any) -> None:
        outputs = model(input_ids=tokens, past_key_values=cache, use_cache=True)
        state.update(cache=outputs.past_key_values, chosen=outputs.logits[:, -1:].argmax(-1))

    return lambda: run(torch.tensor([PROMPT]), None), lambda: run(state["chosen"], state["cache"])


def genai(path: str, threads: int) -> tuple[Step, Step]:
    """A folder in onnxruntime-genai."""
    runtime: Any = importlib.import_module("onnxruntime_genai")  # it has no types
    config = runtime.Config(path)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = runtime.Model(config)
    state: dict[str, Any] = {}

    def step() -> None:
        state["generator"].generate_next_token()

    def prompt() -> None:
        parameters = runtime.GeneratorParams(model)
        parameters.set_search_options(max_length=len(PROMPT) + NEW_TOKENS + 2, do_sample=False)
        state["generator"] = runtime.Generator(model, parameters)
        state["generator"].append_tokens(PROMPT)
        step()

    return prompt, step


def llama(path: str, threads: int) -> tuple[Step, Step]:
    """A file in llama.cpp."""
    runtime: Any = importlib.import_module("llama_cpp")
    model = runtime.Llama(path, n_ctx=128, n_threads=threads, n_threads_batch=threads, verbose=False)

    def prompt() -> None:
        model.reset()
        model.eval(PROMPT)

    return prompt, lambda: model.eval([model.sample(temp=0.0)])


def weight_bytes(path: Path) -> int:
    """Bytes of a model's weights: the file, or the files of the folder that hold them."""
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    return sum(file.stat().st_size for file in files if file.suffix in (".gguf", ".safetensors", ".onnx", ".data"))


def versions(llama_python: str) -> dict[str, str]:
    """Of all that is compared and installed."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in ("guidedq", "torch", "transformers", "onnxruntime", "onnxruntime-genai"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    command = [llama_python, "-c", "import importlib.metadata as m; print(m.version('llama-cpp-python'))"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return found | ({"llama-cpp-python": done.stdout.strip()} if done.returncode == 0 else {})


def page(record: Any) -> str:
    """The table as Markdown."""
    from kernels import table

    from guidedq.backends.packed_torch.native.library import library

    rows, content = record.rows, record.content
    whole = {row["threads"]: row["seconds"] for row in rows if row["runtime"] == "transformers fp32"}
    cells = [
        [
            *(row["runtime"], row["model"], f"{row['bytes'] / 1e6:.1f}", row["threads"], f"{1 / row['seconds']:.1f}"),
            f"{whole[row['threads']] / row['seconds']:.2f}",
        ]
        for row in rows
    ]
    native = library()
    sets = native.instruction_sets[0] if native is not None else "no kernels"
    named = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    machine = f"{content['machine']['cores']} cores, {content['machine']['system']}, {sets}"
    load = f"load {content['load'][0]:.1f} at the start"
    text = f"By `benchmarks/decoding.py` ({machine}, {load}; {named}); its docstring says how."
    return "\n\n".join(["# Decoding beside other runtimes", text, PICTURE, table(HEAD, cells), REMARKS]) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of tokens a second, one for each number of threads, beside the bytes of the weights' file."""
    from guidedq.report.drawing import save_figure
    from guidedq.report.palette import ACCENT, INK, VARIANT_COLOURS
    from guidedq.report.plots import label_in_full, new_figure

    figure, axes = new_figure((7.0, 4.4))
    models = list(dict.fromkeys((row["runtime"], row["model"], row["bytes"]) for row in rows))
    counts = list(dict.fromkeys(row["threads"] for row in rows))
    height = 0.76 / len(counts)
    for number, threads in enumerate(counts):
        speeds = {(row["runtime"], row["model"]): 1 / row["seconds"] for row in rows if row["threads"] == threads}
        places = [place + (number - (len(counts) - 1) / 2) * height for place in range(len(models))]
        colours = [ACCENT if runtime == "guidedq" else VARIANT_COLOURS[0] for runtime, _, _ in models]
        drawn = [speeds[runtime, name] for runtime, name, _ in models]
        axes.barh(places, drawn, height=height, color=colours, alpha=1.0 if number == 0 else 0.55)
        for place, speed in zip(places, drawn, strict=True):
            axes.annotate(f" {speed:.0f}", (speed, place), va="center", color=INK, fontsize=8)
    named = [f"{runtime}, {name}, {size / 1e6:.0f} MB" for runtime, name, size in models]
    axes.set_yticks(range(len(models)), named)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    label_in_full(axes, "tokens a second", "", f"Decoding on {' and, paler, '.join(map(str, counts))} threads")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
