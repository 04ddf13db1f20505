"""Text files to documents."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guidedq.errors import CalibrationError
from guidedq.progress import Progress

SEPARATOR = re.compile(r"<\|endoftext\|>|^(?= ?= [^=\n]*[^=\s] = ?$)", re.MULTILINE)
"""Parts the documents of a .txt file: a mark, as in TinyStories and other corpora, or the titles of WikiText."""
MOST_CHARACTERS = 16_000_000
"""Some four million tokens, a hundred times what the default samples draw: what lies beyond is not read."""
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def read_documents(paths: Sequence[Path], progress: Progress) -> list[str]:
    """The documents of .txt files (parted by `<|endoftext|>` or WikiText's titles) and .jsonl files (a `text` field).

    Repeats are left out.

    Raises:
        CalibrationError: a file is no UTF-8, a line is no JSON, or has no text.
    """
    found: dict[str, None] = {}
    characters = 0
    for path in paths:
        for document in _read_jsonl(path) if path.suffix == ".jsonl" else _read_text(path):
            text = document.strip()
            if text and characters < MOST_CHARACTERS:
                found.setdefault(text[: MOST_CHARACTERS - characters])
                characters += len(text)
    if characters >= MOST_CHARACTERS:
        progress.notice(f"only the first {MOST_CHARACTERS:,} characters of the data are used.")
    return list(found)


def read_lines(paths: Sequence[Path], progress: Progress, at_least: int) -> list[str]:
    """Short texts: the lines of the documents, or their sentences if there are fewer lines than `at_least`."""
    documents = read_documents(paths, progress)
    lines = dict.fromkeys(line.strip() for text in documents for line in text.splitlines() if line.strip())
    if len(lines) >= at_least:
        return list(lines)
    return list(dict.fromkeys(part.strip() for line in lines for part in SENTENCE_END.split(line) if part.strip()))


def _read_text(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        try:
            return SEPARATOR.split(file.read(MOST_CHARACTERS))
        except UnicodeDecodeError as error:
            raise CalibrationError(f"{path} is no UTF-8 text: {error}. Convert it first.") from error


def _read_jsonl(path: Path) -> list[str]:
    texts: list[str] = []
    characters = 0
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                texts.append(_text_of(line, f"{path}, line {number}"))
                characters += len(texts[-1])
            if characters >= MOST_CHARACTERS:
                break
    return texts


def _text_of(line: str, where: str) -> str:
    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        raise CalibrationError(
            f"{where}: no JSON ({error}). Expected one object a line with a field 'text'."
        ) from error
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise CalibrationError(f"{where}: expected an object with a field 'text' that is a string, found {found}.")
    return entry["text"]
