"""`guidedq generate`: streams what the model generates, and refuses what writes no text."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from command_line import run
from packed_folders import emit_demo, emit_random, load_kind

import guidedq
from guidedq.generation import generate_text

PROMPT = "import os\n"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    return emit_demo(tmp_path_factory.mktemp("demo"))


def test_text_comes_in_pieces_and_is_what_the_model_generates(artifact):
    pieces: list[str] = []
    generate_text(artifact, PROMPT, new_tokens=12, temperature=0.0, seed=0, write=pieces.append)
    tokenizer = transformers.AutoTokenizer.from_pretrained(artifact)
    tokens = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    model = guidedq.load_quantized(artifact)
    whole = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12, do_sample=False)
    assert "".join(pieces) == tokenizer.decode(whole[0, tokens.shape[1] :], skip_special_tokens=True)
    assert len(pieces) > 2


def test_the_command_prints_the_text_alone_and_a_seed_repeats_it(artifact):
    words = ("generate", artifact, "--prompt", PROMPT, "--max-new-tokens", 6, "--temperature", 100)
    first, again, other = (run(*words, "--seed", seed) for seed in (3, 3, 4))
    assert first.exit_code == 0, first.stderr
    assert first.stdout == again.stdout != other.stdout
    assert first.stdout.endswith("\n")


def test_a_text_longer_than_the_context_is_refused(artifact):
    result = run("generate", artifact, "--prompt", "x", "--max-new-tokens", 10_000)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "exceeds the model's context of 256" in result.stderr


def test_artifacts_that_write_no_text_are_refused(artifact, tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"")
    (tmp_path / "bert").mkdir()
    emit_random(load_kind("bert", tmp_path / "source"), tmp_path / "bert", 0)
    wordless = shutil.copytree(artifact, tmp_path / "wordless")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (wordless / name).unlink()
    for folder, message in (
        (tmp_path / "onnx", "Compile the model with --backend torch"),
        (tmp_path / "bert", "a BertModel, which does not continue text"),
        (wordless, "tokenizer"),
        (tmp_path, "Expected a folder that guidedq compile wrote"),
        (tmp_path / "nothing", "is no folder"),
    ):
        result = run("generate", folder, "--prompt", "x")
        assert (result.exit_code, result.stdout) == (1, ""), result.stderr
        assert message in result.stderr
