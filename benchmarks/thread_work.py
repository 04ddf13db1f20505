"""How many bytes of a weight are worth a second thread: the kernels on one thread and on two, by what the weight takes.

    python benchmarks/thread_work.py

Compiles the kernels anew with no least amount of work for a thread, then multiplies 4-bit weights of 576 and of 2048
columns and ever more rows by one input: one thread and two in turn, many times, in one process. Other work on the
machine only adds, so what is compared are the least times and the medians. Writes `results/thread_work.json`, from
which `BYTES_A_THREAD` in the kernels follows.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from kernels import random_packed
from records import Record, Row

import guidedq
from guidedq.backends.packed_torch.native import calls
from guidedq.backends.packed_torch.native.library import Library, load_library
from guidedq.quant.formats import AffineFormat

COLUMNS = (576, 2048)
KIBIBYTES = (64, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
FORMAT = AffineFormat(bits=4, group_size=64)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/thread_work.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kernels = eager_kernels(Path(folder))
    arguments.out.unlink(missing_ok=True)
    versions = {"torch": torch.__version__, "guidedq": guidedq.__version__}
    sets = kernels.instruction_sets[0]
    record = Record(arguments.out, versions=versions, instruction_set=sets, seed=0, load=os.getloadavg())
    torch.manual_seed(0)
    for columns in COLUMNS:
        for kibibytes in KIBIBYTES:
            row = layer(kernels, columns, 1024 * kibibytes, arguments.repeats)
            print(row, flush=True)
            record.add(row)


def eager_kernels(folder: Path) -> Library:
    """The kernels, but two threads share whatever has two parts."""
    source = Path(calls.__file__).parent
    shutil.copytree(source, folder / "native")
    changed, count = re.subn(r"BYTES_A_THREAD = [^,]+,", "BYTES_A_THREAD = 1,", (source / "kernels.c").read_text())
    assert count == 1
    (folder / "native" / "kernels.c").write_text(changed)
    files = sorted(map(str, (folder / "native").glob("*.c")))
    command = ["cc", "-std=c11", "-O3", "-shared", "-fPIC", "-pthread", *files, "-o", str(folder / "kernels.so")]
    subprocess.run(command, check=True)
    return load_library(folder / "kernels.so")


def layer(kernels: Library, columns: int, size: int, repeats: int) -> Row:
    """One weight of about `size` bytes."""
    rows = round(size / (columns * (FORMAT.bits + 0.3) / 8))
    packed, inputs = random_packed(FORMAT, columns, rows), torch.randn(1, columns)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(repeats):
        for threads in (1, 2) if number % 2 else (2, 1):
            torch.set_num_threads(threads)
            begun = time.perf_counter()
            calls.multiply_rows(kernels, packed.description, packed.blob, packed.listed, inputs)
            seconds[threads].append(time.perf_counter() - begun)
    least, middle = ({str(k): f(v) for k, v in seconds.items()} for f in (min, median))
    faster = sum(two < one for one, two in zip(seconds[1], seconds[2], strict=True)) / repeats
    row: Row = {"columns": columns, "rows": rows, "bytes": packed.blob.numel(), "least": least, "median": middle}
    return row | {"two_faster": faster, "ratio": least["2"] / least["1"], "median_ratio": middle["2"] / middle["1"]}


if __name__ == "__main__":
    main()
