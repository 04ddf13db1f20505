"""Uses and sites that the backward pass tells nothing of."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper, parser

from guidedq.artifacts.guidance import AbstractGuidance
from guidedq.artifacts.samples import SampleSet
from guidedq.calibration.fisher import FisherGuide
from guidedq.frontend.onnx import load_onnx
from guidedq.progress import SilentProgress

TWO_WAYS = """
<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]>
net (float[n, 4] x, int64 rate) => (float[n, 3] y)
{
    fast = Constant <value_int = 16000> ()
    is_fast = Equal (rate, fast)
    y = If (is_fast) <
        then_branch = quick () => (float[n, 3] t) { t = MatMul (x, w) },
        else_branch = slow () => (float[n, 3] u) { s = Tanh (x) u = MatMul (s, w) }
    >
}
"""
CUT = """
<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]>
net (float[n, 4] x) => (float[n, 3] y)
{
    a = MatMul (x, w)
    b = com.microsoft.BiasGelu (a, c)
    y = MatMul (b, v)
}
"""


def guided(
    text: str, inputs: dict[str, torch.Tensor], folder: Path, memory_bytes: int | None = None
) -> AbstractGuidance:
    model = parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in {"w": (4, 3), "v": (3, 3), "c": (3,)}.items():
        if any(name in node.input for node in model.graph.node) or (name == "w" and text is TWO_WAYS):
            model.graph.initializer.append(numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name))
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    return FisherGuide(sequences=8).collect(
        load_onnx(folder / "model.onnx"),
        SampleSet(inputs=inputs),
        folder / "guidance",
        seed=0,
        memory_bytes=memory_bytes,
        progress=SilentProgress(),
    )


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rate", [16000, 8000])
def test_a_weight_of_two_uses_has_the_gradients_of_the_one_that_samples_reach(rate: int, tmp_path: Path) -> None:
    found = guided(TWO_WAYS, {"x": X, "rate": torch.full((8,), rate)}, tmp_path / "one")
    gradients = found.gradients("w")
    assert gradients is not None
    rows = gradients.rows(0, 3)
    read = X if rate == 16000 else X.tanh()
    along = rows / rows.abs().amax((1, 2), keepdim=True)  # of one token: a product of what was read and a gradient
    expected = rows[:, :, :1] / read[:, None, :1] * read[:, None]
    torch.testing.assert_close(along, expected / rows.abs().amax((1, 2), keepdim=True), rtol=0, atol=0.1)


def test_samples_that_go_another_way_have_gradients_of_zero(tmp_path: Path) -> None:
    """Samples run one by one where a shared input differs; the last ones do not reach the first use."""
    rates = torch.tensor([16000, 8000] * 3 + [8000, 8000])
    found = guided(TWO_WAYS, {"x": X, "rate": rates}, tmp_path / "both")
    gradients = found.gradients("w")
    assert gradients is not None
    assert gradients.rows(0, 3).abs().amax((1, 2)).gt(0).all()


def test_what_no_gradient_reaches_has_one_scale_however_many_passes_there_are(tmp_path: Path) -> None:
    whole = guided(CUT, {"x": X}, tmp_path / "whole")
    split = guided(CUT, {"x": X}, tmp_path / "split", memory_bytes=4 * 4 * 4)
    assert split.facts["passes"] == 2 > whole.facts["passes"]
    for name in ("w", "v"):
        torch.testing.assert_close(split.site(name).terms[0].hessian, whole.site(name).terms[0].hessian)
