"""How much memory an artifact takes while transformers loads it: the claim is that no full-precision copy is ever made.

    python benchmarks/loading_memory.py ARTIFACT

Loads the folder by `from_pretrained` of the class that its configuration names, and prints what the process holds more
than before, as Linux counts it: pages of its own (`RssAnon`), pages of mapped files (`RssFile`), and the most that it
ever held of both (`VmHWM`, set back before). Frameworks are imported before. Writes `results/loading_memory.json`.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import transformers
from records import machine

import guidedq

RESULTS = Path(__file__).parent / "results" / "loading_memory.json"
MEGABYTE = 1e6


def status() -> dict[str, float]:
    """Memory of this process by kind, in megabytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) * 1024 / MEGABYTE for name in ("VmHWM", "VmRSS", "RssAnon", "RssFile")}


def main() -> None:
    """Load, and print one JSON object."""
    folder = Path(sys.argv[1])
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    leaf = getattr(transformers, architecture)
    importlib.import_module("guidedq.backends.packed_torch.placing")  # else imported while it loads
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = status()
    model = leaf.from_pretrained(folder)
    after = status()
    weights = sum(site["shape"][0] * site["shape"][1] for site in model.config.quantization_config.to_dict()["sites"])
    found = {
        "machine": machine(),
        "versions": {"guidedq": guidedq.__version__, "transformers": transformers.__version__},
        "artifact": folder.name,
        "dtype": str(model.dtype),
        "file_mb": round(sum(path.stat().st_size for path in folder.glob("*.safetensors")) / MEGABYTE, 1),
        "packed_weights": weights,
        "their_mb_in_that_dtype": round(weights * model.dtype.itemsize / MEGABYTE, 1),
        "own_pages_mb": round(after["RssAnon"] - before["RssAnon"], 1),
        "file_pages_mb": round(after["RssFile"] - before["RssFile"], 1),
        "peak_mb": round(after["VmHWM"] - before["VmRSS"], 1),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(RESULTS.read_text(), end="")


if __name__ == "__main__":
    main()
