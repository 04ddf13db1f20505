"""Activation outliers are found by a compile in every mode that rounds activations; healthy models are not blamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import save_language_model, save_tokens
from integer_networks import convolutions, products
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

import guidedq
from guidedq.artifacts.diagnostic import Diagnostic

OUTLIER = 3000.0
"""Times as large as the others are the values of one channel, whose weights are as much smaller."""
FIRST, SECOND = np.index_exp[0], np.index_exp[:, 0]
NETWORKS = {"static": (convolutions, (3, 6, 6), FIRST, SECOND), "dynamic": (products, (5, 16), SECOND, FIRST)}
"""For each mode: a network, the shape of a sample, its first channel, and the weights of `w1` that this meets."""


def found(name: str, **request: object) -> Diagnostic:
    report = guidedq.compile(**request).report  # type: ignore[arg-type]
    (diagnostic,) = (one for one in report.diagnostics if one.name == name)
    return diagnostic


@pytest.mark.parametrize("mode", NETWORKS)
@pytest.mark.parametrize("factor", [1.0, OUTLIER])
def test_integers_in_onnx_are_warned_of_outliers_among_what_they_multiply(
    mode: str, factor: float, tmp_path: Path
) -> None:
    network, shape, channel, met = NETWORKS[mode]
    network(tmp_path)
    values = np.random.default_rng(0).normal(size=(80, *shape)).astype(np.float32)
    for sample in values:
        sample[channel] *= factor
    np.savez(tmp_path / "data.npz", x=values)
    _shrink(tmp_path / "source.onnx", met, factor)
    diagnostic = found(
        "activation-outliers",
        model=tmp_path / "source.onnx",
        data=tmp_path / "data.npz",
        activations=mode,
        settings=("guide.sequences=16", "coding=fixed", "tune=none", "correct=none", "activation-budget=1.0"),
        samples=24,
        workspace=tmp_path / "workspace",
        budget="48bits",
        out=tmp_path / "out",
    )
    if factor == 1.0:
        assert diagnostic.verdict == "fine"
        return
    assert diagnostic.verdict == "warning"
    assert diagnostic.number == pytest.approx(OUTLIER, rel=0.2)
    assert "largest input of w1" in diagnostic.meaning
    assert "--keep 'w1'" in diagnostic.advice
    assert "accuracy-level" not in diagnostic.advice


@pytest.mark.parametrize("factor", [1.0, OUTLIER])
def test_packed_layers_that_round_their_inputs_are_warned_of_outliers_among_them(factor: float, tmp_path: Path) -> None:
    model = save_language_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    norm = "model.layers.0.post_attention_layernorm.weight"
    tensors[norm][0] *= factor
    for name in ("gate_proj", "up_proj"):
        tensors[f"model.layers.0.mlp.{name}.weight"][:, 0] /= factor
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    diagnostic = found(
        "activation-outliers",
        model=model,
        data=save_tokens(tmp_path / "tokens.npz"),
        activations="int8",
        settings=("tune=none", "correct=none", "scope=linear"),
        samples=8,
        workspace=tmp_path / "workspace",
        budget="6bits",
        out=tmp_path / "out",
    )
    assert diagnostic.verdict == ("fine" if factor == 1.0 else "warning")
    assert "no --activations int8" in diagnostic.advice


def _shrink(path: Path, met: tuple[object, ...], factor: float) -> None:
    """The weights that meet the channel, so that it matters as much as the others."""
    source = onnx.load(path)
    for stored in source.graph.initializer:
        if stored.name == "w1":
            values = numpy_helper.to_array(stored).copy()
            values[met] /= factor
            stored.CopyFrom(numpy_helper.from_array(values, "w1"))
    onnx.save(source, path)
