"""Quantize ONNX models with guidedq, ONNX Runtime's own quantizers of weights and NNCF, and compare on the same data.

    python benchmarks/against_onnx_tools.py --model NAME=FILE.onnx --data NAME=FILE.npz --eval-data NAME=FILE.npz
        --budgets 3,3.5,4 [--pairs NAME=stsb.tsv] [--nncf PYTHON] --out benchmarks/results/onnx_tools.json
        --page docs/onnx_tools.md

Weights of linear layers only (`--scope linear`). A file's bits: whatever it has beyond the original without these
weights, per weight; what exporters leave for debugging is counted in neither. Divergence,
agreement and accuracy are those of what ONNX Runtime computes.
With `--pairs`, the model embeds sentences: Spearman's correlation of the cosines with the people's scores.
PYTHON is the interpreter of an environment that has nncf, onnx and onnxruntime.
What is found in the record is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import matmul_nbits_quantizer as nbits
from onnxruntime.quantization import quantize_dynamic
from records import Record, Row, options, pairs, timed, write_page
from scipy.stats import spearmanr
from torch import Tensor

import guidedq
from guidedq.artifacts.samples import SampleSet
from guidedq.evaluation import measure
from guidedq.ir.feeding import sample_count
from guidedq.ir.graph import UseKind
from guidedq.ir.joint_output import one_output
from guidedq.ir.model import Model
from guidedq.ir.program import Batch
from guidedq.progress import SilentProgress

COLUMNS = ("model", "tool", "settings", "bits", "file MB", "KL", "agreement", "task", "seconds")
PAIRS = 500
"""Pairs of sentences that are embedded."""
Quantize = Callable[[Path, Path], None]


def blocks(algorithm: str, size: int, bits: int) -> Quantize:
    """MatMulNBitsQuantizer."""

    def quantize(source: Path, target: Path) -> None:
        config = {
            "default": lambda: nbits.DefaultWeightOnlyQuantConfig(block_size=size, bits=bits, accuracy_level=4),
            "hqq": lambda: nbits.HQQWeightOnlyQuantConfig(block_size=size, bits=bits),
            "k-quant": nbits.KQuantWeightOnlyQuantConfig,
            "rtn": nbits.RTNWeightOnlyQuantConfig,
        }[algorithm]()
        quantizer = nbits.MatMulNBitsQuantizer(str(source), bits=bits, block_size=size, algo_config=config)
        quantizer.process()
        made: Any = quantizer.model  # an ONNXModel once it has been processed
        made.save_model_to_file(str(target), False)

    return quantize


def dynamic(source: Path, target: Path) -> None:
    """Weights and activations in int8, these at run time; look-ups are left alone."""
    quantize_dynamic(str(source), str(target), per_channel=True, op_types_to_quantize=["MatMul", "Gemm"])


PEERS: dict[str, Quantize] = {
    "MatMulNBits default, 4 bits, blocks of 32": blocks("default", 32, 4),
    "MatMulNBits default, 4 bits, blocks of 128": blocks("default", 128, 4),
    "MatMulNBits HQQ, 4 bits, blocks of 64": blocks("hqq", 64, 4),
    "MatMulNBits k-quant, 4 bits, blocks of 32": blocks("k-quant", 32, 4),
    "MatMulNBits RTN, 4 bits, blocks of 32": blocks("rtn", 32, 4),
    "MatMulNBits default, 8 bits, blocks of 64": blocks("default", 64, 8),
    "quantize_dynamic, int8": dynamic,
}
NNCF = {
    "int4": "compress_weights, int4, groups of 64",
    "int4 scale estimation": "compress_weights, int4, groups of 64, scale estimation",
    "int4 mixed": "compress_weights, half int4 in groups of 64, half int8",
    "int8": "compress_weights, int8",
}
HERE = Path(__file__).parent


def main() -> None:
    """Run what is missing, print, write after each run."""
    arguments = parse_arguments()
    record = Record(arguments.out, seed=0, onnxruntime=onnxruntime.__version__, torch=torch.__version__)
    for name, path in pairs(arguments.model).items():
        bench = Bench(name, Path(path), arguments)
        for tool, settings, run in bench.runs():
            if not record.has(model=name, tool=tool, settings=settings):
                record.add({"model": name, "tool": tool, "settings": settings, **run()})
                print(line(record.rows[-1]), flush=True)
                write_page(arguments.page, page(record))
    write_page(arguments.page, page(record))


class Bench:
    """One model with its data."""

    def __init__(self, name: str, path: Path, arguments: argparse.Namespace) -> None:
        self.path, self.arguments = path, arguments
        self.model: Model = guidedq.load(path)
        self.data, self.evaluation = pairs(arguments.data)[name], pairs(arguments.eval_data)[name]
        self.sentences = pairs(arguments.pairs).get(name)
        held = np.load(self.evaluation)
        known = {spec.name for spec in self.model.inputs}
        self.samples = SampleSet(
            inputs={key: torch.from_numpy(held[key]) for key in held.files if key in known},
            labels=torch.from_numpy(held["labels"]) if "labels" in held.files else None,
            mask=torch.from_numpy(held["attention_mask"]) if "attention_mask" in held.files else None,
        )
        linear = [s for s in self.model.graph.quantizable if any(use.kind is not UseKind.EMBEDDING for use in s.uses)]
        self.numbers = sum(site.parameters for site in linear)

    def runs(self) -> list[tuple[str, str, Callable[[], Row]]]:
        """All that is asked for."""
        found: list[tuple[str, str, Callable[[], Row]]] = [("original", "", lambda: self.measured(self.path, 0.0))]
        for budget in self.arguments.budgets.split(","):
            found.append(("guidedq", f"{budget} bits", partial(self.ours, budget)))
        found += [("onnxruntime", settings, partial(self.peer, run)) for settings, run in PEERS.items()]
        if self.arguments.nncf:
            found += [("nncf", words, partial(self.peer, partial(self.nncf, name))) for name, words in NNCF.items()]
        return found

    def nncf(self, settings: str, source: Path, target: Path) -> None:
        """NNCF, in its own environment."""
        runner = HERE / "peers" / "onnx_nncf.py"
        command = [self.arguments.nncf, str(runner), str(source), self.data, str(target), settings]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])

    def ours(self, budget: str) -> Row:
        """guidedq, in a process of its own."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            command = [
                *(sys.executable, "-m", "guidedq", "compile", str(self.path), "--budget", f"{budget}bits", "--json"),
                *("--scope", "linear", "--data", self.data, "--eval-data", self.evaluation, "--out", str(out)),
                *("--workspace", str(self.arguments.workspace), *self.arguments.more.split()),
            ]
            ran = timed(command)
            if ran.done.returncode:
                return {"error": " ".join(ran.done.stderr.strip().splitlines()[-1:])}
            report = json.loads(ran.done.stdout)
            facts = {"forecast": report["forecast"]["kl"], "reported": report["measured"]["kl"]}
            return facts | self.measured(out / "model.onnx", ran.seconds)

    def peer(self, quantize: Quantize) -> Row:
        """Another tool, in this process."""
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "model.onnx"
            start = time.perf_counter()
            try:
                quantize(self.path, target)
                return self.measured(target, time.perf_counter() - start)
            except Exception as error:  # whatever the tool raises is what came of it
                return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}

    def measured(self, path: Path, seconds: float) -> Row:
        """Size and loss of a file."""
        run = runner(path, self.model)
        found = measure(
            self.samples,
            self.model.objective,
            predict_original=self.model.program.predict,
            predict_quantized=run,
            progress=SilentProgress(),
        )
        size = without_notes(path)
        rest = without_notes(self.path) - 4 * self.numbers
        task = found.accuracy_after if self.sentences is None else self.spearman(run)
        return {
            "bytes": size,
            "bits": 8 * (size - rest) / self.numbers,
            "kl": found.kl,
            "agreement": found.agreement,
            "task": task,
            "seconds": seconds,
        }

    def spearman(self, run: Callable[[Batch], Tensor]) -> float:
        """Of the cosines of mean-pooled sentences with the scores, on the first pairs of the file."""
        from transformers import AutoTokenizer

        words = AutoTokenizer.from_pretrained(self.path.parent)
        rows = [text.split("\t") for text in Path(self.sentences or "").read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if len(row) > 6][:PAIRS]

        def embedded(text: str) -> Tensor:
            values = words(text, return_tensors="pt", truncation=True, max_length=128)
            return torch.nn.functional.normalize(run(values)[0].mean(0), dim=0)

        cosines = [float(embedded(row[5]) @ embedded(row[6])) for row in rows]
        found: Any = spearmanr(cosines, [float(row[4]) for row in rows])
        return float(found.statistic)


def runner(path: Path, model: Model) -> Callable[[Batch], Tensor]:
    """What ONNX Runtime computes with one thread."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    known = {entry.name for entry in session.get_inputs()}
    outputs = model.output.names if model.output is not None else (session.get_outputs()[0].name,)
    logarithm = model.output is not None and model.output.probabilities

    def run(batch: Batch) -> Tensor:
        feeds = {name: values.numpy() for name, values in batch.items() if name in known}
        found = zip(outputs, session.run(outputs, feeds), strict=True)
        each = {name: torch.from_numpy(np.asarray(one)).float() for name, one in found}
        values = one_output(each, sample_count(batch))
        return values.clamp(min=torch.finfo(torch.float32).tiny).log() if logarithm else values

    return run


def without_notes(path: Path) -> int:
    """Bytes of a file without traces of the source, which some tools keep and others drop."""
    model = onnx.load(path)
    graph = model.graph
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, graph, model):
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:]
    return model.ByteSize()


def line(row: Row) -> str:
    """One row of the table."""
    if "error" in row:
        return f"| {row['model']} | {row['tool']} | {row['settings']} | {row['error'][:160]} |" + " |" * 5
    cells = (
        *(row["model"], row["tool"], row["settings"], f"{row['bits']:.3f}", f"{row['bytes'] / 1e6:.3f}"),
        *(f"{row['kl']:.4g}", f"{row['agreement']:.4f}", "" if row["task"] is None else f"{row['task']:.4f}"),
        f"{row['seconds']:.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def page(record: Record) -> str:
    """The table."""
    facts = record.content["machine"]
    head = f"""# ONNX models, against ONNX Runtime's own quantizers and NNCF

Weights of linear layers and convolutions only; bits are all that a file holds for them, per weight, so a tool that
leaves convolutions in float has many more. KL from the
original on held-out data (for embeddings half the relative squared error), agreement of the answers (for embeddings
their cosine), accuracy or Spearman's correlation, as ONNX Runtime computes them; seconds on a machine busy with other
work. ONNX Runtime {record.content["onnxruntime"]}. By `benchmarks/against_onnx_tools.py`
({facts["cores"]} cores, {facts["system"]}).

| {" | ".join(COLUMNS)} |
{"|---" * len(COLUMNS)}|
"""
    return head + "\n".join(map(line, record.rows)) + "\n"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = options(__doc__, budgets="3,3.5,4", out="onnx_tools.json")
    parser.add_argument("--pairs", action="append", default=[], help="NAME=FILE of the STS benchmark")
    parser.add_argument("--nncf", default=None, metavar="PYTHON")
    parser.add_argument("--page", type=Path, default=Path("docs/onnx_tools.md"))
    return parser.parse_args()


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(3)
    main()
