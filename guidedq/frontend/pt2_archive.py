"""What a .pt2 archive may hold: torch reads some kinds of content in ways that can run code, and these are refused.

torch.export.load (read in torch 2.13, `torch/export/pt2_archive/_package.py`) unpickles weights of tensor subclasses,
custom objects, legacy state dictionaries and example inputs, loads compiled libraries, and evaluates size expressions
with sympy. Ordinary programs need none of the first, and only plain arithmetic of the last.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch

from guidedq.errors import ModelError

COMPILED = "data/aotinductor/"
PICKLED_OBJECTS = ("custom_obj_", "opaque_obj_")
EXAMPLES = re.compile(r"data/sample_inputs/.*\.pt")
LEGACY = re.compile(r"data/(weights|constants)/[^/]*\.pt")
WEIGHT_TABLES = re.compile(r"data/(weights|constants)/.*config\.json")
PROGRAM = re.compile(r"models/.*\.json")
ATTRIBUTE = re.compile(r"__|\.\s*[A-Za-z_]")
PLAIN_WORD = re.compile(r"[A-Z]\w*|[a-z]{1,4}\d+")
"""sympy's own classes (`Mul`, `Integer`) and torch's symbols (`s0`, `u12`)."""
WORD = re.compile(r"[A-Za-z_]\w*(?!\w)(?!\s*=[^=])")
"""A word that is no name of a keyword argument (`positive=True`)."""
ADVICE = "Export it again with torch.export.save of a plain program, or as ONNX."


def check_archive(path: Path) -> None:
    """Refuse an archive that torch could not read, or could read only by running what is in it.

    Raises:
        ModelError: as said, with what was found.
    """
    if not is_zipfile(path):
        raise ModelError(f"{path} is truncated or no .pt2 archive. Expected a file written by torch.export.save.")
    try:
        reader = torch._C.PyTorchFileReader(str(path))  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        records: list[str] = reader.get_all_records()
        if not any(PROGRAM.fullmatch(record) for record in records):
            raise ModelError(f"{path} holds no exported program. Expected a file written by torch.export.save.")
        for record in records:
            _check_record(path, record, reader)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {str(error).splitlines()[0]}. {ADVICE}") from error


def _check_record(path: Path, record: str, reader: Any) -> None:
    if record.startswith(COMPILED):
        raise ModelError(f"{path} holds compiled code ({record}), which is never run. {ADVICE}")
    if LEGACY.fullmatch(record):
        raise ModelError(f"{path} holds its weights as a pickle ({record}), from an old torch. {ADVICE}")
    if EXAMPLES.fullmatch(record) and (content := reader.get_record(record)):
        _check_examples(path, content)
    if WEIGHT_TABLES.fullmatch(record):
        for name, entry in json.loads(reader.get_record(record))["config"].items():
            if entry.get("use_pickle") or str(entry.get("path_name", "")).startswith(PICKLED_OBJECTS):
                raise ModelError(f"{path} holds {name} as a pickle, which can run code when it is read. {ADVICE}")
    if PROGRAM.fullmatch(record):
        for key, text in _texts(json.loads(reader.get_record(record))):
            if (key == "expr_str" and not _is_plain(text)) or (key == "name" and not re.fullmatch(r"[\w.]*", text)):
                raise ModelError(f"{path} holds {text[:60]!r} where a {key} should stand. It is not opened.")


def _check_examples(path: Path, content: bytes) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # what a foreign pickle raises cannot be foreseen
        raise ModelError(f"{path} holds example inputs that only a full unpickling could read. {ADVICE}") from error


def _is_plain(expression: str) -> bool:
    """Whether a size expression consists of sympy's classes, symbols and numbers alone."""
    if ATTRIBUTE.search(expression):
        return False
    return all(PLAIN_WORD.fullmatch(word) for word in WORD.findall(expression))


def _texts(content: Any) -> Iterator[tuple[str, str]]:
    """Every string in nested JSON with the key that it stands under."""
    if isinstance(content, dict):
        for key, value in content.items():
            if isinstance(value, str):
                yield str(key), value
            else:
                yield from _texts(value)
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value)
