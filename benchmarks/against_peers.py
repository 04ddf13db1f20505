"""Quantize the linear layers of language models with guidedq and with other tools, on the same tokens, and compare.

    python benchmarks/against_peers.py --model NAME=DIR --calibration NAME=TEXT --evaluation NAME=TEXT
        --budgets 2.5,3,3.5,4 --peer auto_round=PYTHON:3.5 --peer hqq=PYTHON:3,4 --out benchmarks/results/peers.json

Every tool is given the same `--samples` sequences of `--length` tokens (guidedq takes its probes from them, too), runs
in a process of its own with as many threads, and may quantize the linear layers only. All bytes that it stores for
them are counted, its scales at 16 bits. What came of it is dequantized and measured here: KL and loss increase on
`--eval-samples` other sequences. PYTHON is the interpreter of an environment that has the tool (see `peers/`). What is
found in the record at `--out` is not run again; `peers_page.py` draws it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import Record, pairs, timed
from safetensors.torch import load_file
from transformers import AutoTokenizer

import guidedq
from guidedq.artifacts.samples import SampleSet
from guidedq.evaluation import measure
from guidedq.ir.model import Model
from guidedq.progress import SilentProgress

HERE = Path(__file__).parent
COLUMNS = ("model", "tool", "settings", "bits", "KL", "loss before", "loss increase", "CPU seconds", "peak MB")


def main() -> None:
    """Run what is missing, print, write after each run."""
    arguments = parse_arguments()
    record = Record(arguments.out, threads=torch.get_num_threads(), torch=torch.__version__)
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    calibration, evaluation = pairs(arguments.calibration), pairs(arguments.evaluation)
    for name, folder in pairs(arguments.model).items():
        with tempfile.TemporaryDirectory() as scratch:
            bench = Bench(name, folder, calibration[name], evaluation[name], Path(scratch), arguments)
            for key, run in bench.runs():
                if not record.has(key=key):
                    record.add({"key": key, "model": name, **run()})
                print(line(next(row for row in record.rows if row["key"] == key)), flush=True)


class Bench:
    """One model with its data."""

    def __init__(
        self, name: str, folder: str, calibration: str, evaluation: str, scratch: Path, arguments: argparse.Namespace
    ) -> None:
        self.name, self.folder, self.scratch, self.arguments = name, folder, scratch, arguments
        self.calibration, self.evaluation = scratch / "calibration.npz", scratch / "evaluation.npz"
        words = AutoTokenizer.from_pretrained(folder)
        for text, count, file in (
            (calibration, arguments.samples, self.calibration),
            (evaluation, arguments.eval_samples, self.evaluation),
        ):
            ids = words(Path(text).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
            length = arguments.length
            if len(ids) < count * length:
                raise SystemExit(f"{text} has {len(ids)} tokens; {count * length} are needed.")
            np.savez(file, input_ids=np.array(ids[: count * length]).reshape(count, length))
        self.data = f"{Path(calibration).name} {Path(evaluation).name} {arguments.samples}x{arguments.length}"

    def runs(self) -> list[tuple[str, Any]]:
        """All that is asked for: a key, and a function that runs it."""
        found: list[tuple[str, Any]] = []
        for effort in self.arguments.effort:
            for budget in filter(None, self.arguments.budgets.split(",")):
                key = f"{self.name} guidedq {effort} {budget} seed {self.arguments.seed} {self.data}"
                found.append((key, lambda effort=effort, budget=budget: self.ours(effort, budget)))
        for item in self.arguments.peer:
            tool, _, rest = item.partition("=")
            python, bits, *options = rest.split(":")
            for width in bits.split(","):
                key = f"{self.name} {' '.join([tool, width, *options])} {self.data}"
                found.append((key, lambda t=tool, p=python, w=width, o=options: self.peer(t, p, w, o)))
        return found

    def ours(self, effort: str, budget: str) -> dict[str, Any]:
        """guidedq, in a process of its own."""
        out = self.scratch / f"guidedq-{effort}-{budget}"
        command = [
            *(sys.executable, "-m", "guidedq", "compile", self.folder, "--budget", f"{budget}bits"),
            *("--scope", "linear", "--effort", effort, "--data", str(self.calibration), "--json"),
            *("--eval-data", str(self.evaluation), "--out", str(out), "--seed", str(self.arguments.seed)),
            *("--workspace", str(self.arguments.workspace or self.scratch / f"workspace-{effort}")),
        ]  # fmt: skip
        ran = timed(command)
        if ran.done.returncode:
            return {"tool": "guidedq", "settings": effort, "error": ran.done.stderr.strip()[-300:]}
        report = json.loads(ran.done.stdout)
        return {
            "tool": "guidedq",
            "version": guidedq.__version__,
            "settings": effort,
            "asked": budget,
            "bits": report["size"]["linear_bits_per_weight"],
            "seconds": ran.seconds,
            "cpu_seconds": ran.cpu_seconds,
            "peak_memory_bytes": report["peak_memory_bytes"],
            "kl_forecast": report["forecast"]["kl"],
            **{name: report["measured"][name] for name in ("kl", "loss_before", "loss_after")},
        }

    def peer(self, tool: str, python: str, width: str, options: list[str]) -> dict[str, Any]:
        """Another tool, by its runner."""
        out = self.scratch / "-".join([tool, width, *options])
        runner = HERE / "peers" / f"run_{tool}.py"
        # a folder of its own name: one peer keeps scores by the folder's name alone
        link = self.scratch / f"{self.name}-{tool}-{width}-{len(options)}"
        link.symlink_to(Path(self.folder).resolve())
        command = [python, str(runner), str(link), str(self.calibration), width, str(out), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.scratch)
        name = tool.replace("_", "-")
        if done.returncode:
            return {"tool": name, "settings": " ".join([width, *options]), "error": done.stderr.strip()[-300:]}
        result = json.loads((out / "result.json").read_text())
        return {"tool": name, "asked": width, **result, **self._measured(load_file(out / "weights.safetensors"))}

    def _measured(self, weights: dict[str, torch.Tensor]) -> dict[str, float]:
        model: Model = guidedq.load(self.folder)
        stored = {f"{module}.weight": weight for module, weight in weights.items()}
        samples = SampleSet(inputs={"input_ids": torch.from_numpy(np.load(self.evaluation)["input_ids"])})
        found = measure(
            samples,
            model.objective,
            predict_original=model.program.predict,
            predict_quantized=lambda batch: model.program.predict(batch, weights=stored),
            progress=SilentProgress(),
        )
        return {"kl": found.kl, "loss_before": found.loss_before, "loss_after": found.loss_after}


def line(row: dict[str, Any]) -> str:
    """One row of the Markdown table."""
    if "error" in row:
        return f"| {row['model']} | {row['tool']} | {row['settings']} | {row['error']} |"
    cells = (
        row["model"],
        row["tool"],
        row["settings"],
        f"{row['bits']:.3f}",
        f"{row['kl']:.4g}",
        f"{row['loss_before']:.4f}",
        f"{row['loss_after'] - row['loss_before']:+.4f}",
        f"{row.get('cpu_seconds', row['seconds']):.0f}",
        f"{row['peak_memory_bytes'] / 1e6:.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="NAME=DIR")
    parser.add_argument("--calibration", action="append", required=True, help="NAME=TEXT")
    parser.add_argument("--evaluation", action="append", required=True, help="NAME=TEXT")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--eval-samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--budgets", default="2.5,3,3.5,4")
    parser.add_argument("--effort", action="append", default=None, help="quick, standard, thorough")
    parser.add_argument("--peer", action="append", default=[], help="TOOL=PYTHON:BITS[,BITS][:OPTION...]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workspace", type=Path, default=None, help="Default: a new one, so that times are whole.")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "peers.json")
    parsed = parser.parse_args()
    parsed.effort = parsed.effort or ["standard"]
    return parsed


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
