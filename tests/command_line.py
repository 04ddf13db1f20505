"""Runs commands in this process, on models of some thousand weights, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tiny_transformers import CONFIGURATIONS, save_tiny_transformer
from typer.testing import CliRunner

from guidedq.cli.application import application

VOCABULARY = CONFIGURATIONS["llama"][2]["vocab_size"]


def run(*words: object) -> Any:
    """The result of `guidedq` with these words: `exit_code`, `stdout`, `stderr`, `exception`."""
    return CliRunner().invoke(application, [str(word) for word in words])


def run_json(*words: object) -> dict[str, Any]:
    """What the command prints with --json; it must succeed and print nothing else."""
    result = run(*words, "--json")
    assert result.exit_code == 0, (result.stderr, result.exception)
    return json.loads(result.stdout)


def save_language_model(folder: Path) -> Path:
    """A Llama of random weights."""
    return save_tiny_transformer("llama", folder)


def save_tokens(path: Path, *, samples: int = 24, length: int = 16, seed: int = 0, **others: Any) -> Path:
    """Random token sequences for it, as an .npz file."""
    tokens = np.random.default_rng(seed).integers(3, VOCABULARY, (samples, length))
    np.savez(path, **{"input_ids": tokens, **others})
    return path


def options(folder: Path) -> list[object]:
    """Options that make a compile of `save_language_model` quick, with the workspace and the data in `folder`."""
    data = folder / "tokens.npz"
    if not data.exists():
        save_tokens(data)
    return [
        "--data",
        data,
        "--workspace",
        folder / "workspace",
        "--scope",
        "linear",
        "--samples",
        8,
        "--effort",
        "quick",
    ]
