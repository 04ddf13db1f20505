"""Packed models under plain `torch.compile`, as the documentation has it: inductor writes C++ around the operators."""

from __future__ import annotations

import shutil

import jaxtyping
import pytest
import torch
import transformers
from missing_tools import missing
from packed_folders import emit_random, load_kind
from tolerances import SUM_FLOAT32
from torch._dynamo.utils import counters

from guidedq.ir.lifting import trial_batch


@pytest.mark.slow
def test_a_model_compiled_by_inductor_is_one_graph_and_gives_the_same_numbers(tmp_path, monkeypatch):
    if not any(map(shutil.which, ("g++", "clang++"))):
        missing("no C++ compiler")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of types cannot be traced
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))  # nothing was compiled before
    source = load_kind("tied_llama", tmp_path / "source")
    (folder := tmp_path / "artifact").mkdir()
    emit_random(source, folder, 1, scale=0.2)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    batch = trial_batch(source.inputs)
    compiled = torch.compile(model, fullgraph=True)
    counters.clear()
    with torch.no_grad():
        expected, found = model(**batch).logits, compiled(**batch).logits
        other = {**batch, "input_ids": batch["input_ids"].flip(1)}
        again = compiled(**other).logits
        expected_again = model(**other).logits
    assert counters["stats"]["unique_graphs"] == 1
    assert any((tmp_path / "inductor").rglob("*.cpp"))
    for mine, eager in ((found, expected), (again, expected_again)):
        torch.testing.assert_close(mine, eager, rtol=SUM_FLOAT32, atol=SUM_FLOAT32 * float(eager.abs().max()))
