"""An artifact needs nothing but ONNX Runtime and numpy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from integer_networks import convolutions, products
from onnx_models import ALL_WIDTHS, quantized, random_choice, reference, relative_error
from test_onnx_bytes import network
from test_onnx_export import VOCABULARY, tiny_language_model
from test_onnx_integer import CODES_OFF, EIGHT, samples_of, whole
from test_onnx_numerics import TOLERANCE, all_rows, recurrent, transposed_linear

from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.backends.onnx.settings import Style
from guidedq.ir.activation_rounding import ActivationRounding
from guidedq.quant.formats import AffineFormat, EntropyFormat

ALONE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "guidedq", "transformers", "onnxscript", "ml_dtypes"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Blocker())
import numpy, onnxruntime

options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
session = onnxruntime.InferenceSession(sys.argv[1], options)
numpy.save(sys.argv[3], session.run(None, dict(numpy.load(sys.argv[2])))[0])
"""


@pytest.mark.parametrize("style", ["native", "qdq", "baked"])
def test_every_style_runs_where_only_onnxruntime_and_numpy_are(style: Style, tmp_path: Path) -> None:
    model = network(tmp_path, small=True)
    backend = OnnxBackend(style=style, cast="fp16", accuracy_level=0)
    weights = quantized(model, random_choice(backend.footprint(model, ALL_WIDTHS), 1))
    feeds = {"i": np.random.default_rng(0).integers(0, 40, (2, 5))}
    assert (
        relative_error(_alone(backend, model, weights, feeds, tmp_path), reference(model, weights, feeds)) < TOLERANCE
    )


@pytest.mark.parametrize("format", [EntropyFormat(bits=2.5, code="rice"), AffineFormat(bits=3, group_size=16)], ids=str)
@pytest.mark.parametrize("source", [transposed_linear, recurrent], ids=lambda source: source.__name__)
def test_coded_and_recurrent_weights_run_there(source: Any, format: Any, tmp_path: Path) -> None:
    model, feeds = source(tmp_path)
    weights = quantized(model, all_rows(format))
    found = _alone(OnnxBackend(accuracy_level=0), model, weights, feeds, tmp_path)
    assert relative_error(found, reference(model, weights, feeds)) < TOLERANCE


@pytest.mark.parametrize(
    ("network", "activations"), [(convolutions, "static"), (products, "static"), (products, "dynamic")]
)
def test_integers_run_there(network: Any, activations: Any, tmp_path: Path) -> None:
    model, backend = network(tmp_path), OnnxBackend(activations=activations)
    weights, rounding = quantized(model, all_rows(EIGHT)), whole(model, backend)
    batch = samples_of(model).inputs
    stored = {weight.name: model.graph.site(weight.name).stored(weight.dequantize()) for weight in weights}
    expected = model.program.predict(batch, weights=stored, activations=rounding).numpy()
    feeds = {name: values.numpy() for name, values in batch.items()}
    assert relative_error(_alone(backend, model, weights, feeds, tmp_path, rounding), expected) < CODES_OFF


@pytest.mark.slow
def test_the_graph_of_the_genai_layout_runs_there(tmp_path: Path) -> None:
    model, backend = tiny_language_model("llama", tmp_path / "model"), OnnxBackend(layout="genai", accuracy_level=0)
    weights = quantized(model, all_rows(AffineFormat(bits=6, group_size=64)))
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, 7))
    feeds = {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "position_ids": np.tile(np.arange(7), (2, 1)),
        **{
            f"past_key_values.{layer}.{part}": np.zeros((2, 2, 0, 12), np.float32)
            for layer in (0, 1)
            for part in ("key", "value")
        },
    }
    stored = {weight.name: model.graph.site(weight.name).stored(weight.dequantize()) for weight in weights}
    expected = model.program.predict({"input_ids": torch.from_numpy(tokens)}, weights=stored).numpy()
    assert relative_error(_alone(backend, model, weights, feeds, tmp_path), expected) < TOLERANCE


def _alone(
    backend: OnnxBackend,
    model: Any,
    weights: Any,
    feeds: Mapping[str, np.ndarray],
    root: Path,
    rounding: ActivationRounding | None = None,
) -> np.ndarray:
    """The first output of the emitted file, in a process that finds no other package."""
    (root / "out").mkdir()
    path = backend.emit(model, weights, root / "out", rounding).weights_file
    np.savez(root / "feeds.npz", **feeds)  # pyright: ignore[reportArgumentType]  (a name is no option)
    words = [str(path), str(root / "feeds.npz"), str(root / "output.npy")]
    subprocess.run([sys.executable, "-I", "-c", ALONE, *words], check=True, cwd=root)
    return np.load(root / "output.npy")
