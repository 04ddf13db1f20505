"""Fine-tuning before a sweep."""

from __future__ import annotations

import itertools
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
from guidedq.law.record import GUIDED, UNIFORM
from guidedq.law.run import run_law
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


def test_a_law_after_fine_tuning_is_of_the_tuned_model(tmp_path: Path) -> None:
    original = save_language_model(tmp_path / "model")
    steps = np.random.default_rng(0).integers(1, 3, (60, 16))
    np.savez(tmp_path / "text.npz", input_ids=3 + steps.cumsum(1) % 7)
    (tmp_path / "scratch").mkdir()
    arguments = {"settings": ("scope=linear", "max-bits=5"), "samples": 8, "effort": "quick"}

    def loss(text: Path | None) -> tuple[float, str]:
        law = run_law(
            [str(original)],
            [1e6],
            (5, 4, 3, 2),
            finetune=text,
            finetune_steps=None if text is None else 10,
            scratch=tmp_path / "scratch",
            arguments={
                **arguments,
                **({} if text else {"data": tmp_path / "text.npz"}),
                "workspace": tmp_path / "workspace",
            },
        )
        (swept,) = law.models
        assert {(point.allocation, point.width) for point in swept.points} == set(
            itertools.product((UNIFORM, GUIDED), (5, 4, 3, 2))
        )
        assert all(point.loss == pytest.approx(swept.loss + point.increase) for point in swept.points)
        return swept.loss, swept.digest

    (untouched, digest), (tuned, other) = loss(None), loss(tmp_path / "text.npz")
    assert tuned < untouched - 1e-3
    assert digest == guidedq.load(original).digest != other
