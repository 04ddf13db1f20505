"""How long the default allocator takes for a million rows: the claim is under two seconds on one core.

    python benchmarks/allocator_speed.py

Rows have sensitivities that are log-normal within and between sites, distortions that fall about fourfold per bit with
some noise, and twelve formats of which four may be mixed in a site. Writes `results/allocator_speed.json`. On a machine
that is busy with other work, the processor's seconds tell more than the clock's.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.footprint import Footprint, SiteFootprint
from guidedq.ir.graph import Graph, Site, Use, UseKind, operator_graph
from guidedq.passes.allocate.lagrangian import LagrangianAllocator
from guidedq.quant.formats import AffineFormat, FloatFormat, Format

SEED = 20
SITES = 250
ROWS = 4000
COLUMNS = 1024
REPEATS = 5
BITS_PER_WEIGHT = 3.5
FORMATS: tuple[Format, ...] = (
    *(AffineFormat(bits=bits, group_size=128) for bits in (2, 3, 4, 5, 6, 8)),
    *(AffineFormat(bits=bits, group_size=64) for bits in (2, 3, 4, 5, 6)),
    FloatFormat(),
)


def main() -> None:
    """Time the allocator; print and keep the result."""
    torch.set_num_threads(1)
    graph, curves, footprint = problem()
    limit = int(BITS_PER_WEIGHT * SITES * ROWS * COLUMNS / 8)
    allocations: list[Allocation] = []
    seconds: list[float] = []
    processor_seconds: list[float] = []
    for _ in range(REPEATS):
        start, processor_start = time.perf_counter(), time.process_time()
        allocations.extend(LagrangianAllocator().allocate(graph, curves, footprint, [limit]))
        seconds.append(time.perf_counter() - start)
        processor_seconds.append(time.process_time() - processor_start)
    result = {
        "rows": SITES * ROWS,
        "sites": SITES,
        "formats": len(FORMATS),
        "seconds": [round(value, 3) for value in seconds],
        "seconds_median": round(float(np.median(seconds)), 3),
        "processor_seconds": [round(value, 3) for value in processor_seconds],
        "processor_seconds_median": round(float(np.median(processor_seconds)), 3),
        "bytes_left_over": limit - allocations[-1].bytes,
        "bits_per_weight": round(8 * allocations[-1].bytes / (SITES * ROWS * COLUMNS), 5),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seed": SEED,
        "threads": 1,
        "machine": f"{platform.machine()} {processor()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
    }
    text = json.dumps(result, indent=2)
    print(text)
    target = Path(__file__).parent / "results" / "allocator_speed.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(text + "\n")


def problem() -> tuple[Graph, dict[str, SiteCurve], Footprint]:
    """A graph of equal sites with made-up curves."""
    random = np.random.default_rng(SEED)
    sites = tuple(
        Site(name=f"site{index}", shape=(ROWS, COLUMNS), uses=(Use(operator=f"site{index}", kind=UseKind.LINEAR),))
        for index in range(SITES)
    )
    sizes = tuple(format.row_bytes(COLUMNS) for format in FORMATS)
    spread = np.exp2([-2.0 * 8 * size / COLUMNS for size in sizes]).astype(np.float32)
    curves: dict[str, SiteCurve] = {}
    for site in sites:
        sensitivity = random.lognormal(random.normal(-12, 1), 1.0, size=(ROWS, 1))
        distortion = sensitivity * spread * random.lognormal(0, 0.1, size=(ROWS, len(FORMATS)))
        curves[site.name] = SiteCurve(
            name=site.name,
            formats=FORMATS,
            distortion=torch.from_numpy(distortion.astype(np.float32)),
            row_noise=torch.full((ROWS,), 0.2),
            entropy_bytes=torch.zeros(len(FORMATS)),
            projections=None,
        )
    footprint = SiteFootprint(
        formats=FORMATS,
        row_bytes=sizes,
        segment_bytes=(64,) * len(FORMATS),
        site_bytes=64,
        mixed_row_bits=2,
        mixed_bytes=64,
        segments=4,
    )
    graph = Graph(operators=operator_graph([], []), sites=sites)
    return graph, curves, Footprint(base_bytes=0, sites={site.name: footprint for site in sites})


def processor() -> str:
    """The processor's name where the system tells it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
