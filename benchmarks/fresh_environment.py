"""Whether a wheel is enough: a new environment, with and without a C compiler, in which transformers loads an artifact.

    python benchmarks/fresh_environment.py

Makes a new virtual environment. Then twice, the second time with `CC=false`: builds the wheel from a copy of the
checkout, installs it there (torch comes with the first), compiles the demo model at the command line in a workspace of
its own, loads the folder by `AutoModelForCausalLM.from_pretrained` after `import guidedq`, and generates. Ends with an
error where a step fails, where there are kernels that could not be compiled, or none where they could, and where
the two write different text. Writes what it did to `results/fresh_environment.txt`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from records import machine

ROOT = Path(__file__).parents[1]
TORCH = "torch==2.13.0"
"""A plain `torch` brings gigabytes of CUDA libraries."""
COMPILE = ("compile", "demo", "--budget", "3.5bits", "--effort", "quick", "--workspace", "work", "--out", "small")
LOAD = """
import json
import guidedq
import torch, transformers
from guidedq.backends.packed_torch.native.library import library

model = transformers.AutoModelForCausalLM.from_pretrained("small", dtype=torch.float32)
tokenizer = transformers.AutoTokenizer.from_pretrained("small")
tokens = model.generate(**tokenizer("import os", return_tensors="pt"), max_new_tokens=24, do_sample=False)
print(json.dumps({
    "text": tokenizer.decode(tokens[0]),
    "class": type(model).__name__,
    "head": type(model.lm_head).__name__,
    "instruction_sets": list(library().instruction_sets) if library() else [],
    "versions": {each.__name__: each.__version__ for each in (guidedq, torch, transformers)},
}))
"""
OMITTED = shutil.ignore_patterns(
    ".git", "build", "*.egg-info", "*.so", "__pycache__", ".venv", ".*_cache", ".hypothesis"
)


def main() -> None:
    """Do all of it with a C compiler, then without."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fresh_environment.txt"))
    arguments = parser.parse_args()
    facts = machine()
    lines = [f"{facts['system']}, Python {facts['python']}, {facts['cores']} cores"]
    texts: list[str] = []
    root = Path(tempfile.mkdtemp(prefix="guidedq-fresh-"))
    run(root, sys.executable, "-m", "venv", "new")
    programs = root / "new" / ("Scripts" if os.name == "nt" else "bin")
    for named, variables in {"with a C compiler": {}, "without (CC=false)": {"CC": "false"}}.items():
        said, found = installed(programs, root / named.split()[0], variables)
        if bool(found["instruction_sets"]) == bool(variables):
            raise SystemExit(
                f"{named}: expected {'no ' if variables else ''}kernels, found {found['instruction_sets']}."
            )
        lines += ["", f"== {named}", *said]
        texts.append(found["text"])
    if texts[0] != texts[1]:
        raise SystemExit(f"The two environments write different text: {texts[0]!r}, {texts[1]!r}.")
    lines += ["", "Both write the same text."]
    arguments.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    shutil.rmtree(root)


def installed(programs: Path, folder: Path, variables: dict[str, str]) -> tuple[list[str], dict[str, Any]]:
    """Build, install, compile, load, generate; what was done and what came of it."""
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=OMITTED)
    run(folder, sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", "wheels", "./source", variables=variables)
    (wheel,) = (folder / "wheels").iterdir()
    with ZipFile(wheel) as archive:
        kernels = [Path(name).name for name in archive.namelist() if Path(name).name.startswith("_kernels")]
    run(folder, str(programs / "python"), "-m", "pip", "uninstall", "--yes", "guidedq")
    run(folder, str(programs / "python"), "-m", "pip", "install", TORCH, str(wheel))
    compiled = run(folder, str(programs / "guidedq"), *COMPILE)
    found = json.loads(run(folder, str(programs / "python"), "-c", LOAD).splitlines()[-1])
    named = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    said = [
        f"wheel: {wheel.name}, {wheel.stat().st_size} bytes, kernels: {', '.join(kernels) or 'none'}",
        f"installed: {named}",
        f"$ guidedq {' '.join(COMPILE)}",
        *compiled.strip().splitlines(),
        f"loaded: {found['class']} with {found['head']}, instruction sets: "
        f"{', '.join(found['instruction_sets']) or 'none, plain torch'}",
        f"generated: {found['text']!r}",
    ]
    return said, found


def run(folder: Path, *command: str, variables: dict[str, str] | None = None) -> str:
    """What a command prints, run in a folder where nothing of the checkout is on the path."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    kept |= {"HF_HUB_OFFLINE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"} | (variables or {})
    done = subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
