"""An artifact needs nothing but ONNX Runtime and numpy."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx_models import ALL_WIDTHS, quantized, random_choice, reference, relative_error
from test_onnx_bytes import network
from test_onnx_numerics import TOLERANCE

from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.backends.onnx.settings import Style

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
numpy.save(sys.argv[3], session.run(None, {"i": numpy.load(sys.argv[2])})[0])
"""


@pytest.mark.parametrize("style", ["native", "qdq", "baked"])
def test_every_style_runs_where_only_onnxruntime_and_numpy_are(style: Style, tmp_path: Path) -> None:
    model = network(tmp_path, small=True)
    backend = OnnxBackend(style=style, cast="fp16", accuracy_level=0)
    weights = quantized(model, random_choice(backend.footprint(model, ALL_WIDTHS), 1))
    (tmp_path / "out").mkdir()
    path = backend.emit(model, weights, tmp_path / "out").weights_file
    indices = np.random.default_rng(0).integers(0, 40, (2, 5))
    np.save(tmp_path / "indices.npy", indices)
    words = [str(path), str(tmp_path / "indices.npy"), str(tmp_path / "output.npy")]
    subprocess.run([sys.executable, "-I", "-c", ALONE, *words], check=True, cwd=tmp_path)
    expected = reference(model, weights, {"i": indices})
    assert relative_error(np.load(tmp_path / "output.npy"), expected) < TOLERANCE
