"""Quantize the zoo's ONNX models with guidedq and with other tools, and measure all in the same way.

    python benchmarks/onnx_zoo.py --models FOLDER --out ZOO
    python benchmarks/against_onnx_tools.py --zoo ZOO [--model NAME] [--tool NAME] [--nncf PYTHON] [--olive PYTHON]
        --out benchmarks/results/onnx_tools.json
    python benchmarks/onnx_tools_page.py

All calibrate on the same samples and are measured on the same others, each file in a process of its own that imports
ONNX Runtime and numpy alone (benchmarks/onnx_measure.py), next to the original. A file's size is what it has on disk
once notes and inferred shapes are dropped from it, which some tools leave and others do not. PYTHON is the interpreter
of an environment with that tool. What is found in the record is not run again.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from records import Record, Row
from zoo.entries import LABELS, Entry, Facts, read_entry
from zoo.rivals import RIVALS, Rival
from zoo.sources import bare

HERE = Path(__file__).parent
OWN_EVALUATION = 256
"""Samples that guidedq measures on itself; all tools are measured on all of them here."""
INTEGER_BUDGETS = (8,)
"""Bits a weight of the files that compute in integers."""
LONGEST = 2400
"""Seconds that one tool may take for one file."""
ERROR_LETTERS = 220
SAME, NOTHING = 0.999, "found nothing to quantize"
"""A file of this share of the original's bytes or more was left as it was."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One compile of guidedq."""

    label: str
    options: str


def main() -> None:
    """Run what is missing, write after each run."""
    arguments = parse_arguments()
    packages = {name: version(name) for name in ("guidedq", "torch", "onnx", "onnxruntime")}
    record = Record(arguments.out, seed=0, versions=packages)
    for entry in entries(arguments):
        for tool, settings, run in runs(entry, arguments):
            if record.has(model=entry.name, tool=tool, settings=settings):
                continue
            if arguments.tool and tool not in (*arguments.tool, "original"):
                continue
            with tempfile.TemporaryDirectory() as folder:
                row = run(Path(folder))
            facts = {"model": entry.name, "tool": tool, "settings": settings}
            record.add({**facts, **row})
            print(json.dumps(record.rows[-1]), flush=True)


def entries(arguments: argparse.Namespace) -> list[Entry]:
    """The models asked for, in that order; all of the zoo if none is named."""
    names = arguments.model or sorted(path.parent.name for path in arguments.zoo.glob("*/facts.json"))
    return [read_entry(arguments.zoo / name) for name in names]


def runs(entry: Entry, arguments: argparse.Namespace) -> Iterator[tuple[str, str, Run]]:
    """All that is compared on a model."""
    yield "original", "", Original(entry)
    for variant in variants(entry.facts, arguments):
        yield "guidedq", variant.label, Ours(entry, variant, arguments.workspace)
    pythons = {"onnxruntime": sys.executable, "nncf": arguments.nncf, "olive": arguments.olive}
    for rival in RIVALS:
        if rival.fits(entry.facts) and pythons[rival.tool] and (rival.first or not arguments.short):
            yield rival.tool, rival.label, Theirs(entry, rival, pythons[rival.tool])


def variants(facts: Facts, arguments: argparse.Namespace) -> Iterator[Variant]:
    """Budgets of the whole file or of what the linear and convolution layers hold, and integers on CNN and OCR."""
    words = f"--scope {arguments.scope} {arguments.more}"
    name = "whole file" if arguments.scope == "file" else "layers alone"
    name += f", {arguments.more.strip()}" if arguments.more else ""
    for bits in arguments.budgets.split(","):
        yield Variant(label=f"{bits} bits, {name}", options=f"--budget {bits}bits {words}")
    if facts.family in ("cnn", "ocr"):
        for bits in INTEGER_BUDGETS:
            integers = f"--budget {bits}bits {words} --activations static"
            yield Variant(label=f"{bits} bits, {name}, static int8", options=integers)
            every_level = f"{integers} --set reduce-range=false"
            yield Variant(label=f"{bits} bits, {name}, static int8, 255 levels", options=every_level)


@dataclass(frozen=True)
class Original:
    """The file as it was, against itself."""

    entry: Entry

    def __call__(self, folder: Path) -> Row:
        """Measure."""
        return measured(self.entry, self.entry.model)


@dataclass(frozen=True)
class Ours:
    """guidedq, in a process of its own."""

    entry: Entry
    variant: Variant
    workspace: Path

    def __call__(self, folder: Path) -> Row:
        """Compile and measure."""
        data, part, out = self.entry.folder / "calibration.npz", folder / "evaluation.npz", folder / "out"
        evaluation = self.entry.arrays("evaluation", OWN_EVALUATION)
        if LABELS in evaluation and LABELS not in self.entry.arrays("calibration"):
            del evaluation[LABELS]
        np.savez(part, **evaluation)  # pyright: ignore[reportArgumentType]  (a name is no option)
        command = [
            *(sys.executable, "-m", "guidedq", "compile", str(self.entry.model), "--json", "--out", str(out)),
            *("--data", str(data), "--eval-data", str(part)),
            *("--workspace", str(self.workspace), *self.variant.options.split()),
        ]  # fmt: skip
        start = time.perf_counter()
        ran = ran_within(command)
        if isinstance(ran, str):
            return {"error": ran}
        report = json.loads(ran.stdout)
        facts = {"forecast": report["forecast"]["kl"], "reported": report["measured"]["kl"]}
        seconds = time.perf_counter() - start
        return {"compile_seconds": seconds, **facts, **measured(self.entry, out / "model.onnx")}


@dataclass(frozen=True)
class Theirs:
    """Another tool, in its own environment."""

    entry: Entry
    rival: Rival
    python: str

    def __call__(self, folder: Path) -> Row:
        """Quantize and measure."""
        script = (
            HERE
            / "peers"
            / {"onnxruntime": "onnx_ort.py", "nncf": "onnx_nncf.py", "olive": "onnx_olive.py"}[self.rival.tool]
        )
        target = folder / "model.onnx"
        start = time.perf_counter()
        ran = ran_within([self.python, str(script), str(self.entry.folder), str(target), *self.rival.words.split()])
        if isinstance(ran, str):
            return {"error": ran}
        onnx.save(bare(onnx.load(str(target))), str(target))
        if target.stat().st_size >= SAME * self.entry.model.stat().st_size:
            return {"bytes": target.stat().st_size, "error": NOTHING}
        return {"compile_seconds": time.perf_counter() - start, **measured(self.entry, target)}


Run = Original | Ours | Theirs


def measured(entry: Entry, path: Path) -> Row:
    """Size, and what the process that measures says."""
    ran = ran_within([sys.executable, str(HERE / "onnx_measure.py"), str(entry.folder), str(path)])
    size = {"bytes": path.stat().st_size}
    return size | ({"error": ran} if isinstance(ran, str) else json.loads(ran.stdout.splitlines()[-1]))


def ran_within(command: list[str]) -> subprocess.CompletedProcess[str] | str:
    """The finished process, or the last that it said before it failed."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return f"not done after {LONGEST} s"
    if ran.returncode == 0:
        return ran
    said = [line.strip() for line in ran.stderr.splitlines() if line.strip()]
    named = [line for line in said if "Error" in line or "Fail" in line or "rror:" in line]
    last = (named or said or [f"exit code {ran.returncode}"])[-1]
    return re.sub(r"/\S*/", "", last)[:ERROR_LETTERS]  # files by name: folders are nobody's business


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--tool", action="append", default=[], help="guidedq, onnxruntime, nncf, olive; default: all")
    parser.add_argument("--short", action="store_true", help="the short list of other tools' settings")
    parser.add_argument("--budgets", default="4,3,8", help="of guidedq, in bits a weight")
    parser.add_argument("--more", default="", help="further options of guidedq")
    parser.add_argument("--scope", choices=("file", "linear"), default="file", help="what guidedq's budgets count")
    parser.add_argument("--nncf", help="the interpreter of an environment")
    parser.add_argument("--olive", help="the interpreter of an environment")
    parser.add_argument("--workspace", type=Path, default=Path(tempfile.gettempdir()) / "guidedq-onnx-tools")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/onnx_tools.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
