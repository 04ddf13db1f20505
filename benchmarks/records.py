"""What the benchmarks share: their common options, timed commands, and a record on disk that is added to run by run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A command that ran to its end, whatever that was; its wall-clock seconds, and those of all cores it used."""

    done: subprocess.CompletedProcess[str]
    seconds: float
    cpu_seconds: float


def timed(command: list[str]) -> Timed:
    """Run a command."""
    start, before = time.perf_counter(), children_seconds()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Timed(done=done, seconds=time.perf_counter() - start, cpu_seconds=children_seconds() - before)


def children_seconds() -> float:
    """CPU seconds of all processes that this one has started and awaited."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def machine() -> dict[str, str | int | None]:
    """What it runs on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


class Record:
    """Rows of measurements in a JSON file, written after each; what is found there need not be run again."""

    def __init__(self, path: Path, **facts: Any) -> None:
        self.path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
        self.content |= {"machine": machine(), **facts}

    @property
    def rows(self) -> list[Row]:
        """All measurements."""
        return self.content["rows"]

    def has(self, **key: Any) -> bool:
        """Whether there is a row with these values."""
        return any(all(row[name] == value for name, value in key.items()) for row in self.rows)

    def add(self, row: Row) -> None:
        """Append a row and write the file."""
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")


def write_page(path: Path, text: str) -> None:
    """A page of docs/."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def pairs(items: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUE` by name."""
    return dict(item.split("=", 1) for item in items)


def options(description: str | None, *, budgets: str, out: str) -> argparse.ArgumentParser:
    """A parser with what every benchmark over models takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="NAME=PATH")
    parser.add_argument("--data", action="append", default=[], help="NAME=FILE")
    parser.add_argument("--eval-data", action="append", default=[], help="NAME=FILE")
    parser.add_argument("--budgets", default=budgets)
    parser.add_argument("--workspace", type=Path, default=Path(tempfile.gettempdir()) / "guidedq-benchmark")
    parser.add_argument("--more", default="", help="further options of guidedq")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results") / out)
    return parser
