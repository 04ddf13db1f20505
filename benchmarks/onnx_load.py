"""What unpacking at load costs: seconds and memory until an ONNX file is ready, against plain 4-bit MatMulNBits.

    python benchmarks/onnx_load.py

Sixteen matrix products of 2048 x 2048, groups of 64, at every width in the native style, and at the odd ones baked.
Each file is loaded by a process of its own that has only ONNX Runtime, three times, in turn; the least seconds and the
median of memory are kept. Memory is the process's peak above what it held before. Four bits fill their container and
are stored as the runtime takes them: they are the plain file. Writes `results/onnx_load.json`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

import guidedq
from guidedq.artifacts.quantized_weight import QuantizedWeight, affine_segment
from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.backends.onnx.settings import Style
from guidedq.ir.model import Model
from guidedq.quant.formats import AffineFormat
from guidedq.quant.grid import Grid, quantize_nearest

SEED, LAYERS, SIZE, GROUP, REPEATS = 0, 16, 2048, 64, 3
PLAIN: tuple[Style, int] = ("native", 4)
CASES: tuple[tuple[Style, int], ...] = (
    PLAIN,
    *(("native", bits) for bits in (2, 3, 5, 6, 7, 8)),
    *(("baked", bits) for bits in (3, 5, 6, 7)),
)
LOAD = """
import json, re, sys, time, onnxruntime

def greatest():
    with open("/proc/self/status") as status:
        return 1024 * int(re.search("VmHWM: *([0-9]+) kB", status.read().replace(chr(9), " "))[1])

held = greatest()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
start, processor = time.perf_counter(), time.process_time()
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
times = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - processor}
print(json.dumps(times | {"peak_bytes": greatest() - held}))
"""


def main() -> None:
    """Write the files, load each, print and keep the results."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = written(Path(folder))
        runs: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in files}
        for _ in range(REPEATS):
            for case, path in files.items():
                runs[case].append(loaded(path))
        rows = [row(case, files[case].stat().st_size, runs) for case in files]
    for entry in rows:
        print(json.dumps(entry))
    result = {
        "rows": rows,
        "layers": LAYERS,
        "size": SIZE,
        "group_size": GROUP,
        "seed": SEED,
        "machine": platform.processor() or platform.machine(),
        "versions": {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__, "torch": torch.__version__},
    }
    (Path(__file__).parent / "results" / "onnx_load.json").write_text(json.dumps(result, indent=1) + "\n")


def written(folder: Path) -> dict[tuple[str, int], Path]:
    """The file of each case."""
    model = guidedq.load(network(folder))
    files: dict[tuple[str, int], Path] = {}
    for style, bits in CASES:
        out = folder / f"{style}{bits}"
        out.mkdir()
        files[style, bits] = OnnxBackend(style=style).emit(model, rounded(model, bits), out).weights_file
    return files


def network(folder: Path) -> Path:
    """The products, one after another."""
    random = np.random.default_rng(SEED)
    names = ["x", *(f"h{layer}" for layer in range(1, LAYERS)), "y"]
    nodes = [helper.make_node("MatMul", [names[k], f"w{k}"], [names[k + 1]]) for k in range(LAYERS)]
    weights = [
        numpy_helper.from_array(random.normal(size=(SIZE, SIZE)).astype(np.float32) / SIZE**0.5, f"w{layer}")
        for layer in range(LAYERS)
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", SIZE]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "m.onnx")
    return folder / "m.onnx"


def rounded(model: Model, bits: int) -> Iterator[QuantizedWeight]:
    """Every weight rounded to nearest."""
    format = AffineFormat(bits=bits, group_size=GROUP)
    for site in model.graph.quantizable:
        matrix = model.matrix(site)
        low, high = matrix.reshape(site.rows, -1, GROUP).aminmax(dim=-1)
        scales = ((high - low) / (2**bits - 1)).half()
        zero_points = (-low / scales.float()).round().clamp(0, 2**bits - 1).to(torch.uint8)
        grid = Grid(scales=scales, zero_points=zero_points)
        codes = quantize_nearest(matrix, grid, format)
        segment = affine_segment(format, torch.arange(site.rows), codes, grid, None, None)
        yield QuantizedWeight(name=site.name, shape=(site.rows, site.columns), segments=(segment,))


def loaded(path: Path) -> dict[str, float]:
    """What it takes to load a file, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def row(case: tuple[str, int], size: int, runs: dict[tuple[str, int], list[dict[str, float]]]) -> dict[str, Any]:
    """One line of the table: a case beside the plain file."""
    best = {key: min(run[key] for run in runs[case]) for key in ("seconds", "processor_seconds")}
    peak = peak_of(runs[case])
    plain_seconds = min(run["processor_seconds"] for run in runs[PLAIN])
    plain_peak = peak_of(runs[PLAIN])
    return {
        "style": case[0],
        "bits": case[1],
        "file_bytes": size,
        **{key: round(value, 3) for key, value in best.items()},
        "peak_bytes": peak,
        "times_plain_seconds": round(best["processor_seconds"] / plain_seconds, 2),
        "times_plain_peak": round(peak / plain_peak, 2),
    }


def peak_of(runs: list[dict[str, float]]) -> int:
    """The median of the peaks: now and then the system hands out memory in larger pieces."""
    return int(statistics.median(run["peak_bytes"] for run in runs))


if __name__ == "__main__":
    main()
