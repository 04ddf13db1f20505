"""Data and weights that leave little to go by: the model is valid, within its budget, and has no NaN."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_transformers import save_tiny_transformer

import guidedq
from guidedq.errors import BudgetError

pytestmark = pytest.mark.slow
VOCABULARY, LENGTH = 40, 24
Weights = dict[str, torch.Tensor]


def as_it_is(weights: Weights) -> None: ...


def equal_embeddings(weights: Weights) -> None:
    """Every token looks the same: the first layer's inputs have rank one."""
    weights["model.embed_tokens.weight"][:] = weights["model.embed_tokens.weight"][3].clone()


def equal_weights(weights: Weights) -> None:
    """One matrix whose weights are all the same, and one of zeros."""
    weights["model.layers.0.self_attn.q_proj.weight"].fill_(0.01)
    weights["model.layers.1.mlp.up_proj.weight"].zero_()


def folder_of(change: Callable[[Weights], None], path: Path) -> Path:
    folder = save_tiny_transformer("llama", path / "model")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def sequences(path: Path, count: int, low: int = 3, high: int = VOCABULARY, seed: int = 0) -> Path:
    ids = np.random.default_rng(seed).integers(low, high, (count, LENGTH))
    np.savez(path, input_ids=ids)
    return path


def compiled(folder: Path, path: Path, budget: str, *, data: Path, evaluation: Path, samples: int) -> guidedq.Artifact:
    return guidedq.compile(
        folder, data=data, eval_data=evaluation, budget=budget, samples=samples, settings=["tune.steps=20"],
        workspace=path / "workspace", out=path / f"out-{budget}",
    )  # fmt: skip


def feasible(folder: Path, path: Path, data: Path, evaluation: Path) -> tuple[float, float]:
    """Bits of the smallest and the largest file, from the message that an absurd budget gets."""
    with pytest.raises(BudgetError) as raised:
        compiled(folder, path, "0.01bits", data=data, evaluation=evaluation, samples=4)
    low, high = re.findall(r"([\d.]+) bits", str(raised.value).split("Feasible:")[1])[:2]
    return float(low), float(high)


def check(artifact: guidedq.Artifact, bits: float) -> None:
    report = artifact.report
    size = (artifact.folder / "model.safetensors").stat().st_size
    assert 8 * size <= bits * report.model.parameters
    assert np.isfinite([report.measured.kl, report.measured.loss_after, report.forecast.kl]).all()
    model = guidedq.load_quantized(artifact.folder)
    assert bool(model(torch.arange(3, 20)[None]).logits.isfinite().all())


@pytest.mark.parametrize(("change", "samples"), [(as_it_is, 1), (equal_embeddings, 6), (equal_weights, 6)])
def test_little_to_go_by(change: Callable[[Weights], None], samples: int, tmp_path: Path) -> None:
    folder = folder_of(change, tmp_path)
    data, evaluation = sequences(tmp_path / "a.npz", samples + 1), sequences(tmp_path / "b.npz", 4, seed=1)
    low, high = feasible(folder, tmp_path, data, evaluation)
    bits = round(low + 0.2 * (high - low), 2)
    check(compiled(folder, tmp_path, f"{bits}bits", data=data, evaluation=evaluation, samples=samples), bits)


def test_calibration_far_from_the_evaluation(tmp_path: Path) -> None:
    folder = folder_of(as_it_is, tmp_path)
    data, evaluation = sequences(tmp_path / "a.npz", 12, 3, 6), sequences(tmp_path / "b.npz", 4, 20, 40)
    low, high = feasible(folder, tmp_path, data, evaluation)
    bits = round(low + 0.2 * (high - low), 2)
    check(compiled(folder, tmp_path, f"{bits}bits", data=data, evaluation=evaluation, samples=8), bits)


def test_both_ends_of_what_is_feasible(tmp_path: Path) -> None:
    folder = folder_of(as_it_is, tmp_path)
    data, evaluation = sequences(tmp_path / "a.npz", 8), sequences(tmp_path / "b.npz", 4, seed=1)
    low, high = feasible(folder, tmp_path, data, evaluation)
    with pytest.raises(BudgetError, match="smallest file takes") as raised:  # told once codes have been measured
        compiled(folder, tmp_path, f"{low + 0.01:.2f}bits", data=data, evaluation=evaluation, samples=6)
    advised = float(re.findall(r"Raise the budget to ([\d.]+)bits", str(raised.value))[0])
    loss = []
    for bits in (advised, int(high * 100) / 100):
        artifact = compiled(folder, tmp_path, f"{bits}bits", data=data, evaluation=evaluation, samples=6)
        check(artifact, bits)
        loss.append(artifact.report.measured.kl)
    assert loss[1] < loss[0]
