"""The house itself: short files, no forbidden names, links in place, a face that loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("guidedq", "passes", "backends", "calibration", "tests", "benchmarks")
LONGEST_FILE = 400
VAGUE_NAMES = {"utils", "helpers", "common", "base", "misc", "manager"}


def sources() -> list[Path]:
    return [
        path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in path.parts
    ]


def test_no_file_is_longer_than_four_hundred_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_file_or_folder_has_a_name_that_says_nothing() -> None:
    named = {part.removesuffix(".py") for path in sources() for part in path.relative_to(ROOT).parts}
    assert named & VAGUE_NAMES == set()


def test_the_wings_are_links_inside_the_package() -> None:
    for wing in ("passes", "backends", "calibration"):
        assert (ROOT / "guidedq" / wing).resolve() == ROOT / wing


def test_pyproject_names_every_file_in_c_so_that_source_archives_have_them() -> None:
    (extension,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    native = ROOT / "guidedq" / "backends" / "packed_torch" / "native"
    files = {str(path.relative_to(ROOT)) for path in native.iterdir() if path.suffix in (".c", ".h")}
    assert {*extension["sources"], *extension["depends"]} == files


def test_importing_guidedq_loads_neither_torch_nor_onnx_nor_transformers() -> None:
    code = (
        "import sys, guidedq; print([m for m in ('torch', 'onnx', 'onnxruntime', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
