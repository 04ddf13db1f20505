"""Fine-tune a language model on a text before it is swept, as one does who adapts a model and then quantizes it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from guidedq.artifacts.samples import SampleSet
from guidedq.errors import LawError
from guidedq.evaluation import token_input
from guidedq.ir.model import Model, Objective
from guidedq.ir.program import TorchProgram
from guidedq.progress import Progress, tracked
from guidedq.registry import parse_stage
from guidedq.stages import AbstractSampler

STEPS = 200
"""Optimizer steps, where the user says nothing."""
BATCH = 4
"""Sequences of a step."""
RATE = 5e-5
"""Adam's learning rate, the usual one for fine-tuning all weights of a language model (transformers' own default)."""
MOMENTS = (0.9, 0.999)
"""Adam's as published (Kingma and Ba 2015)."""


def check_tunable(model: Model) -> nn.Module:
    """The transformers model behind it.

    Raises:
        LawError: it is no language model from a Hugging Face folder.
    """
    whole = model.program.module.__dict__.get("whole") if isinstance(model.program, TorchProgram) else None
    if model.source != "hugging_face" or model.objective is not Objective.LANGUAGE_MODEL or whole is None:
        raise LawError(f"--finetune trains language models from Hugging Face folders; {model.name} is none.")
    return whole


def fine_tuned(
    model: Model, text: Path, folder: Path, *, steps: int, sequence_length: int | None, seed: int, progress: Progress
) -> Path:
    """Train all weights on next tokens of `text` with Adam at a constant rate, and write the model into `folder`.

    Sequences are drawn by the sampler that draws calibration data from files, each once per pass in an order given by
    the seed; what it holds back for the evaluation is not trained on.

    Args:
        model: Its weights are changed: load it again for anything else.
        text: What to train on.
        folder: Gets a Hugging Face folder with weights in float16.
        steps: Optimizer steps, of `BATCH` sequences each.
        sequence_length: Tokens of a sequence; the sampler's default if `None`.
        seed: Seeds sampling and order.
        progress: Told about steps.

    Raises:
        LawError: the model cannot be trained here, or its loss stops being a number.
        CalibrationError: the text will not do.
    """
    whole = check_tunable(model)
    length = "" if sequence_length is None else f" sequence-length={sequence_length}"
    sampler: AbstractSampler = parse_stage(f"files{{samples={BATCH * steps}{length}}}", "sample")
    samples = sampler.sample(model, [text], [], seed=seed, progress=progress).calibration
    weights = list(whole.parameters())
    optimizer = torch.optim.Adam([weight.requires_grad_(True) for weight in weights], lr=RATE, betas=MOMENTS)
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [torch.randperm(len(samples), generator=generator) for _ in range(-(-steps * BATCH // len(samples)))]
    )
    for step in tracked(progress, "fine-tune", range(steps), steps):
        loss = _loss(model, samples.pick(order[step * BATCH : (step + 1) * BATCH]))
        if not bool(torch.isfinite(loss)):
            raise LawError(f"fine-tuning {model.name} diverged: the loss at step {step} is {float(loss)}.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for weight in weights:
        weight.requires_grad_(False)
    _save(whole, model, folder)
    return folder


def _loss(model: Model, batch: SampleSet) -> Tensor:
    """Mean cross-entropy of the next tokens; padding is left out."""
    assert isinstance(model.program, TorchProgram), "check_tunable has seen it"
    logits = model.program.module(**batch.inputs)
    tokens = token_input(batch.inputs)
    assert tokens is not None, "a language model takes tokens"
    targets = tokens[:, 1:] if batch.mask is None else tokens[:, 1:].masked_fill(~batch.mask[:, 1:].bool(), -100)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)


def _save(whole: nn.Module, model: Model, folder: Path) -> None:
    """As a Hugging Face folder with the tokenizer that came with it."""
    pretrained = whole.half()
    pretrained.save_pretrained(folder)  # pyright: ignore[reportCallIssue] - a transformers model
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
