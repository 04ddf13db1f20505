"""What `--activations` and `--objective latency` make of a model: size, accuracy, output error and latency in one run.

    python benchmarks/activations.py --model NAME=model.onnx --data inputs.npz --eval-data inputs.npz
        --variant "static, guided:--activations static" --variant "none:" --out benchmarks/results/x.json

A variant is options of `guidedq compile` behind a label. All are measured on the same samples by ONNX Runtime with its
default options and one thread. A latency is the least of many calls, the models taking turns, as a ratio to the
original's in the same run. Other tools: against_onnx_tools.py.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from records import machine

BATCH = 64
"""Samples run at once."""
OWN_EVALUATION = 256
"""Samples that guidedq measures on itself: all models are measured on all of them here."""
ROUNDS = 60
KERNELS = ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits")
COLUMNS = (
    *("model", "quantized by", "file", "accuracy", "KL or relative error", "forecast", "latency", "latency forecast"),
    "kernels",
)
Inputs = Mapping[str, np.ndarray]


def main() -> None:
    """Make all models, measure all, write."""
    arguments = parse_arguments()
    name, _, path = arguments.model.partition("=")
    source = Path(path)
    evaluation = read(arguments.eval_data, arguments.evaluated)
    with tempfile.TemporaryDirectory() as scratch:
        made: dict[str, dict[str, Any]] = {"fp32": {"path": source}}
        for variant in arguments.variant:
            label, _, options = variant.partition(":")
            made[f"guidedq {label}"] = compiled(source, options, arguments, Path(scratch) / str(len(made)))
        rows = measured(name, made, evaluation)
    text = table(rows)
    print(text)
    record = {
        "machine": machine(),
        "versions": {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__},
        "arguments": [
            re.sub(r"(^|=)/\S*/", r"\1", word) for word in sys.argv[1:]
        ],  # files by name: folders are nobody's business
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def read(path: Path, count: int) -> dict[str, np.ndarray]:
    """The first samples of a file of named inputs."""
    with np.load(path) as content:
        return {name: content[name][:count] for name in content.files}


def compiled(source: Path, options: str, arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """One of guidedq's: the file and its forecast."""
    part = out.with_suffix(".npz")
    np.savez(part, **read(arguments.eval_data, OWN_EVALUATION))  # pyright: ignore[reportArgumentType]  (a name is no option)
    given = ("--data", str(arguments.data), "--eval-data", str(part))
    data = ("--data", str(arguments.text)) if arguments.text else given
    command = [
        *(sys.executable, "-m", "guidedq", "compile", str(source), "--json", *data),
        *("--workspace", str(arguments.workspace), "--out", str(out)),
        *shlex.split(arguments.more), *shlex.split(options),
    ]  # fmt: skip
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    forecast = {key: report["forecast"][key] for key in ("kl", "kl_low", "kl_high")}
    asked = report["latency"] and report["latency"]["predicted_ratio"]
    return {"path": out / "model.onnx", "forecast": forecast, "latency forecast": asked, "notices": report["notices"]}


def measured(name: str, made: Mapping[str, Mapping[str, Any]], evaluation: Inputs) -> list[dict[str, Any]]:
    """Every model on the same samples, and their latencies in turns."""
    sessions = {label: session_of(entry["path"]) for label, entry in made.items()}
    feeds = feeds_of(made["fp32"]["path"], evaluation)
    outputs = {label: run(session, feeds) for label, session in sessions.items()}
    least = latencies(sessions, {key: values[:1] for key, values in feeds.items()})
    labels = evaluation.get("labels")
    rows: list[dict[str, Any]] = []
    for label, entry in made.items():
        rows.append(
            {
                "model": name,
                "label": label,
                "bytes": entry["path"].stat().st_size,
                "accuracy": None if labels is None else float((outputs[label].argmax(-1) == labels).mean()),
                "error": distance(outputs["fp32"], outputs[label], logits=labels is not None),
                "forecast": entry.get("forecast"),
                "latency forecast": entry.get("latency forecast"),
                "milliseconds": 1000 * least[label],
                "latency": least[label] / least["fp32"],
                "kernels": kernels(entry["path"]),
                "notices": entry.get("notices"),
            }
        )
    return rows


def session_of(path: Path, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """One thread, default optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds_of(path: Path, samples: Inputs) -> dict[str, np.ndarray]:
    """Those of the samples that the model takes."""
    wanted = {entry.name for entry in onnx.load(str(path), load_external_data=False).graph.input}
    return {name: values for name, values in samples.items() if name in wanted}


def batches(feeds: Inputs) -> Iterator[dict[str, np.ndarray]]:
    """Parts of the samples."""
    count = len(next(iter(feeds.values())))
    for start in range(0, count, BATCH):
        yield {name: values[start : start + BATCH] for name, values in feeds.items()}


def run(session: onnxruntime.InferenceSession, feeds: Inputs) -> np.ndarray:
    """The first output for all samples."""
    return np.concatenate([np.asarray(session.run(None, batch)[0]) for batch in batches(feeds)])


def latencies(sessions: Mapping[str, onnxruntime.InferenceSession], feeds: Inputs) -> dict[str, float]:
    """Seconds of the fastest call on one sample."""
    least = dict.fromkeys(sessions, float("inf"))
    for _ in range(ROUNDS):
        for label, session in sessions.items():
            start = time.perf_counter()
            session.run(None, dict(feeds))
            least[label] = min(least[label], time.perf_counter() - start)
    return least


def distance(original: np.ndarray, other: np.ndarray, *, logits: bool) -> float:
    """KL(p || p_q) a sample in nats, or half the relative squared error a sample: the units of guidedq's forecasts."""
    p, q = original.astype(np.float64), other.astype(np.float64)
    if not logits:
        flat = (len(p), -1)
        squares = ((p - q).reshape(flat) ** 2).sum(1) / (p.reshape(flat) ** 2).sum(1)
        return float(0.5 * squares.mean())
    log_p, log_q = (values - np.logaddexp.reduce(values, axis=-1, keepdims=True) for values in (p, q))
    return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())


def kernels(path: Path) -> dict[str, int]:
    """Integer kernels in the graph that the runtime made of the file."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session_of(path, optimized)
        counted = Counter(node.op_type for node in onnx.load(str(optimized)).graph.node)
    return {kernel: counted[kernel] for kernel in KERNELS if counted[kernel]}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        forecast = row["forecast"]
        cells = (
            row["model"],
            row["label"],
            f"{row['bytes'] / 1000:,.0f} kB",
            "" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f}%",
            f"{row['error']:.4g}",
            "" if forecast is None else f"{forecast['kl']:.3g} ({forecast['kl_low']:.3g} to {forecast['kl_high']:.3g})",
            f"{row['latency']:.2f}",
            f"{row['latency forecast']:.2f}" if row["latency forecast"] else "",
            ", ".join(f"{number} {kernel}" for kernel, number in row["kernels"].items()),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="NAME=PATH")
    parser.add_argument("--data", type=Path, required=True, help=".npz of named inputs")
    parser.add_argument("--eval-data", type=Path, required=True, help=".npz of named inputs, with labels if it has any")
    parser.add_argument("--text", type=Path, help="what guidedq calibrates on in place of --data")
    parser.add_argument("--evaluated", type=int, default=2000, help="evaluation samples")
    parser.add_argument("--variant", action="append", default=[], help="label:options of guidedq compile")
    parser.add_argument("--more", default="", help="options of every compile")
    parser.add_argument("--workspace", type=Path, default=Path(tempfile.gettempdir()) / "guidedq-benchmark")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/activations.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
