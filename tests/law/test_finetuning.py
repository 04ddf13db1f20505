"""Fine-tuning before a sweep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import save_language_model
from tiny_transformers import save_tiny_transformer

import guidedq
from guidedq.errors import LawError
from guidedq.ir.model import Model
from guidedq.law.finetuning import check_tunable, fine_tuned
from guidedq.progress import SilentProgress

TOKENS = 3 + np.arange(40 * 16).reshape(40, 16) % 7
"""A text that is easily learned."""


def text_loss(model: Model) -> float:
    """Nats per token of the text."""
    tokens = torch.tensor(TOKENS)
    logits = model.program.predict({"input_ids": tokens})
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))


def test_fine_tuning_writes_a_model_that_does_better_on_its_text(tmp_path: Path) -> None:
    original = save_language_model(tmp_path / "model")
    np.savez(tmp_path / "text.npz", input_ids=TOKENS)

    def tuned(name: str, steps: int) -> Model:
        model = guidedq.load(original)
        settings = {"steps": steps, "sequence_length": None, "seed": 0, "progress": SilentProgress()}
        return guidedq.load(fine_tuned(model, tmp_path / "text.npz", tmp_path / name, **settings))

    short, again, longer = tuned("short", 2), tuned("again", 2), tuned("longer", 20)
    untouched = guidedq.load(original)
    assert text_loss(longer) < text_loss(short) < text_loss(untouched)
    assert short.digest == again.digest != untouched.digest


def test_only_language_models_from_hugging_face_folders_are_fine_tuned(tmp_path: Path) -> None:
    encoder = guidedq.load(save_tiny_transformer("bert", tmp_path / "bert"))
    with pytest.raises(LawError, match="trains language models from Hugging Face folders; bert is none"):
        check_tunable(encoder)
