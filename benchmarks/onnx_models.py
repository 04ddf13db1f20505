"""Compile ONNX models and tabulate what became of each: loaded, guided, compiled, the output's error.

    python benchmarks/onnx_models.py --model NAME=PATH [--data NAME=FILE] [--sizes NAME=48,96] [--value NAME=sr=16000]
        [--also "NAME=--scope linear"] [--bits 4] [--samples 32] --out benchmarks/results/onnx_models.json

A model without data gets random ones that fit its inputs: normal floats, token ids within the vocabulary, bytes, masks
of ones. `--sizes` are the sizes of the free axes in the order in which the file names them, the samples' own left out
(16 where nothing is said). Prints a Markdown table; writes JSON with versions, seed and machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from records import machine

from guidedq.errors import GuidedQError
from guidedq.frontend.onnx import load_onnx
from guidedq.ir.model import InputSpec, Model

COLUMNS = ("model", "opset", "operators", "sites", "weights in sites", "guided by", "file, bits", "error forecast",
           "error measured", "unit", "seconds", "options")  # fmt: skip
USUAL_SIZE = 16
"""Of a free axis."""
LARGEST_BYTE = 256
"""Integers of inputs that are neither tokens nor masks are below this."""


def main() -> None:
    """Compile, print, write."""
    arguments = parse_arguments()
    data, sizes = (dict(item.split("=", 1) for item in items) for items in (arguments.data, arguments.sizes))
    rows: list[dict[str, Any]] = []
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    for item in arguments.model:
        name, _, path = item.partition("=")
        given = [int(size) for size in sizes.get(name, "").split(",") if size]
        fixed = dict(value.split("=", 2)[1:] for value in arguments.value if value.startswith(f"{name}="))
        rows.append(row(name, Path(path), data.get(name), given, fixed, arguments))
        print(line(rows[-1]), flush=True)
        write(rows, arguments)


def write(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """The record so far."""
    packages = {package: version(package) for package in ("guidedq", "torch", "onnx", "onnxruntime")}
    record = {"machine": machine(), "versions": packages, "seed": arguments.seed, "bits": arguments.bits,
              "effort": arguments.effort, "rows": rows}  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def row(
    name: str, path: Path, data: str | None, sizes: list[int], fixed: dict[str, str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """What became of one model; the error where it ended in one."""
    try:
        facts = {"model": name, **lifted(path, model := load_onnx(path))}
    except GuidedQError as error:
        return {"model": name, "error": str(error)}
    with tempfile.TemporaryDirectory() as folder:
        if data is None:
            arrays = synthetic(model, path, sizes, fixed, arguments.samples, arguments.seed)
            data = str(Path(folder) / "random.npz")
            np.savez(data, allow_pickle=False, **arrays)
        out = Path(folder) / "out"
        more = [
            word for item in arguments.also if item.startswith(f"{name}=") for word in item.split("=", 1)[1].split()
        ]
        command = [
            *(sys.executable, "-m", "guidedq", "compile", str(path), "--budget", f"{arguments.bits}bits"),
            *("--backend", "onnx", "--effort", arguments.effort, "--data", data, "--out", str(out), "--json"),
            *("--workspace", str(arguments.workspace), "--seed", str(arguments.seed), *more),
        ]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        if done.returncode:
            return facts | {"error": " ".join(done.stderr.strip().splitlines()[-1:])}
        report = json.loads(done.stdout)
        size = sum(file.stat().st_size for file in out.glob("model.onnx*"))
    return facts | {
        "options": more,
        "linear_bits": report["size"]["linear_bits_per_weight"],
        "data": "random" if data.endswith("random.npz") else Path(data).name,
        "bytes": size,
        "bits": 8 * size / model.parameters,
        "forecast": report["forecast"]["kl"],
        "measured": report["measured"]["kl"],
        "agreement": report["measured"]["agreement"],
        "unit": report["model"]["unit"],
        "seconds": seconds,
    }


def lifted(path: Path, model: Model) -> dict[str, Any]:
    """What the frontend makes of the file."""
    proto = onnx.load_model(str(path), load_external_data=False)
    return {
        "opset": next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")),
        "operators": len(operators(proto.graph)),
        "sites": len(model.graph.sites),
        "share": sum(site.parameters for site in model.graph.sites) / max(model.parameters, 1),
        "parameters": model.parameters,
        "guidance": "gradients" if model.program.differentiable else "forward-only",
        "notices": list(model.notices),
    }


def operators(graph: onnx.GraphProto) -> Counter[str]:
    """How often each kind of operator stands in the graph, branches included."""
    found = Counter(node.op_type for node in graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += operators(attribute.g)
    return found


def synthetic(
    model: Model, path: Path, sizes: list[int], fixed: dict[str, str], samples: int, seed: int
) -> dict[str, np.ndarray]:
    """Random samples for every input."""
    free = free_sizes(path, sizes)
    generator = torch.Generator().manual_seed(seed)
    return {
        spec.name: values(model, spec, (samples, *_shape(spec, free)), fixed.get(spec.name), generator).numpy()
        for spec in model.inputs
    }


def values(
    model: Model, spec: InputSpec, shape: tuple[int, ...], fixed: str | None, generator: torch.Generator
) -> torch.Tensor:
    """Random values for one input: its own fixed one, masks of ones, ids, bytes, or a normal distribution."""
    if fixed is not None:
        return torch.full(shape, float(fixed)).to(spec.dtype)
    if "mask" in spec.name or spec.dtype is torch.bool:
        return torch.ones(shape, dtype=spec.dtype)
    if "position" in spec.name or "type_ids" in spec.name:
        return torch.arange(shape[-1]).expand(shape).to(spec.dtype) * ("position" in spec.name)
    if not spec.dtype.is_floating_point:
        return torch.randint(model.vocabulary_size or LARGEST_BYTE, shape, generator=generator).to(spec.dtype)
    return torch.randn(shape, generator=generator).to(spec.dtype)


def free_sizes(path: Path, sizes: list[int]) -> dict[str, list[int]]:
    """The sizes of the free axes of every input, in order; axes of one name have one size."""
    graph = onnx.load_model(str(path), load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    waiting, known = list(sizes), dict[str, int]()
    found: dict[str, list[int]] = {}
    for entry in graph.input:
        dims = entry.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims if entry.name not in stored else ()):
            key = dim.dim_param if dim.dim_param not in ("", "?") else f"{entry.name} {axis}"
            if (not dim.HasField("dim_value") or dim.dim_value < 0) and (axis or found):
                known[key] = known[key] if key in known else (waiting.pop(0) if waiting else USUAL_SIZE)
                found.setdefault(entry.name, []).append(known[key])
        found.setdefault(entry.name, [])
    return found


def _shape(spec: InputSpec, free: dict[str, list[int]]) -> tuple[int, ...]:
    sizes = free[spec.name][-sum(size is None for size in spec.shape[1:]) or len(free[spec.name]) :]
    left = iter(sizes)
    return tuple(next(left) if size is None else size for size in spec.shape[1:])


def line(entry: dict[str, Any]) -> str:
    """One row of the Markdown table."""
    if "sites" not in entry:
        return f"| {entry['model']} | {entry['error']} |"
    head = (entry["model"], entry["opset"], entry["operators"], entry["sites"], f"{entry['share']:.1%}",
            entry["guidance"])  # fmt: skip
    if "error" in entry:
        return "| " + " | ".join(map(str, (*head, entry["error"]))) + " |"
    tail = (f"{entry['bits']:.3f}", f"{entry['forecast']:.3g}", f"{entry['measured']:.3g}", entry["unit"],
            f"{entry['seconds']:.0f}", " ".join(entry["options"]))  # fmt: skip
    return "| " + " | ".join(map(str, (*head, *tail))) + " |"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="NAME=PATH")
    parser.add_argument("--data", action="append", default=[], help="NAME=FILE")
    parser.add_argument("--sizes", action="append", default=[], help="NAME=SIZE,SIZE of free axes")
    parser.add_argument("--value", action="append", default=[], help="NAME=INPUT=NUMBER")
    parser.add_argument("--bits", type=float, default=4)
    parser.add_argument("--effort", default="quick")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workspace", type=Path, default=Path(tempfile.gettempdir()) / "guidedq-onnx-models")
    parser.add_argument("--also", action="append", default=[], help="NAME=further options of guidedq compile")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/onnx_models.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
