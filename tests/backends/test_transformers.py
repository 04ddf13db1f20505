"""Artifacts of the torch backend in transformers: `from_pretrained`, `save_pretrained`, and what follows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packed_folders import CODED, emit_random, load_kind

from guidedq.backends.packed_torch.backend import PackedTorchBackend
from guidedq.ir.lifting import trial_batch

CLASSES = {
    "tied_llama": transformers.AutoModelForCausalLM,
    "gpt2": transformers.AutoModelForCausalLM,
    "bert": transformers.AutoModel,
    "masked_bert": transformers.AutoModelForMaskedLM,
    "bert_classifier": transformers.AutoModelForSequenceClassification,
    "t5": transformers.AutoModelForSeq2SeqLM,
    "resnet": transformers.AutoModelForImageClassification,
}
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Any:
    """Folders by kind, emitted once; with the inputs of the model."""
    made: dict[str, tuple[Path, Any]] = {}

    def artifact(kind: str) -> tuple[Path, Any]:
        if kind not in made:
            model = load_kind(kind, tmp_path_factory.mktemp("source"))
            folder = tmp_path_factory.mktemp(kind)
            emit_random(model, folder, 1, scale=0.2, candidates=CODED)
            made[kind] = folder, trial_batch(model.inputs)
        return made[kind]

    return artifact


@pytest.fixture
def copied(artifacts, tmp_path) -> Path:
    return shutil.copytree(artifacts("tied_llama")[0], tmp_path / "artifact")


def main_output(model: Any, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch)[0]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_kind_of_model_loads_as_guidedq_loads_it_and_survives_being_saved(kind, artifacts, tmp_path):
    folder, batch = artifacts(kind)
    expected = main_output(PackedTorchBackend().load(folder), batch)
    loaded, report = CLASSES[kind].from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(main_output(loaded, batch), expected)
    loaded.save_pretrained(tmp_path)
    again = CLASSES[kind].from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(main_output(again, batch), expected)
