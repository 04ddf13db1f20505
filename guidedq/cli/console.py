"""What the terminal shows: progress with time left and notices on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

from guidedq.report.wording import seconds_text
from guidedq.strict_json import json_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_WIDTH = 200
"""Columns of a table that goes to a file or a pipe: wide enough that names are not cut."""
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Other libraries' bars and warnings, which would run through ours; what the user set is kept."""


@final
class ConsoleProgress:
    """Draws the current stage on stderr: a bar with time left on a terminal, one line a stage elsewhere.

    It is a context manager; outside of it nothing is drawn.
    """

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._bars: RichProgress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._total = 0
        self._done = 0
        self._began = 0.0
        self.told: set[str] = set()

    def __enter__(self) -> ConsoleProgress:
        """Begin to draw."""
        if self._console.is_terminal:
            self._bars = _bars(self._console)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop drawing; after an error the unfinished stage is named."""
        if error is not None and self._done < self._total:
            self._line(f"{self._stage}: {self._done} of {self._total}, not finished")
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def start(self, stage: str, total: int) -> None:
        """A stage begins, of `total` steps."""
        self._stage, self._total, self._done, self._began = stage, total, 0, time.perf_counter()
        if self._bars is not None:
            self._drop()
            self._task = self._bars.add_task(stage, total=total)

    def advance(self, steps: int = 1) -> None:
        """So many steps of the current stage are done; the last one leaves a line."""
        self._done += steps
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, steps)
        if self._done - steps < self._total <= self._done:
            self._drop()
            counted = f"{self._total} steps in " if self._total > 1 else ""
            self._line(f"{self._stage}: {counted}{seconds_text(time.perf_counter() - self._began)}")

    def notice(self, text: str) -> None:
        """Say something that the user should know, once."""
        if text not in self.told:
            self.told.add(text)
            self._line(text)

    def _drop(self) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None

    def _line(self, text: str) -> None:
        target = self._bars.console if self._bars is not None else self._console
        target.print(text, soft_wrap=True)


@contextlib.contextmanager
def working(*, threads: int | None = None) -> Generator[ConsoleProgress]:
    """Around all work: other libraries kept quiet, what they print anyway sent to stderr, and progress drawn."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        with ConsoleProgress() as progress, contextlib.redirect_stdout(sys.stderr):
            yield progress


def console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: names may hold brackets."""
    from rich.console import Console

    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = PLAIN_WIDTH
    return made


def print_json(content: Mapping[str, Any]) -> None:
    """One JSON object on stdout, and nothing else."""
    sys.stdout.write(json_text(content))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> None:
    """A table on stdout; all but the first `text_columns` columns are numbers and end at the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < text_columns else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Names and values on stdout, one a line."""
    width = max((len(name) for name, _ in facts), default=0)
    out = console()
    for name, value in facts:
        out.print(f"{name:<{width}}  {value}", soft_wrap=True)


def _bars(console: Console) -> RichProgress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
