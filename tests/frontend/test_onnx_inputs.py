"""Inputs of ONNX graphs: samples in any axis or in none, batches that the file fixes, weights in branches."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import numpy_helper, parser

from guidedq.calibration.text_inputs import from_tokens
from guidedq.frontend.onnx import load_onnx
from guidedq.ir.program import TorchProgram

STATEFUL = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[BATCH, 5] x, float[2, BATCH, 4] state, int64 rate) => (float[BATCH, 4] y, float[2, BATCH, 4] next)
{
    a = MatMul (x, weight)
    r = Cast <to = 1> (rate)
    next = Mul (state, r)
    s = ReduceSum <keepdims = 0> (next, axis)
    b = Tanh (s)
    y = Add (a, b)
}
"""


def _load(folder, batch, text=STATEFUL):
    model = parser.parse_model(text.replace("BATCH", batch))
    weight = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    model.graph.initializer.extend(
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array([0]), "axis")]
    )
    path = folder / f"{batch}.onnx"
    path.write_bytes(model.SerializeToString())
    return load_onnx(path), onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _batch(samples, rates):
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(samples, 5, generator=generator),
        "state": torch.randn(samples, 2, 4, generator=generator),
        "rate": torch.tensor(rates),
    }


def _expected(session, batch):
    """Sample by sample, as the file takes them."""
    rows = []
    for index in range(len(batch["x"])):
        feeds = {
            "x": batch["x"][index : index + 1].numpy(),
            "state": batch["state"][index][:, None].contiguous().numpy(),
            "rate": batch["rate"][index].numpy(),
        }
        rows.append(session.run(["y"], feeds)[0])
    return torch.from_numpy(np.concatenate(rows))


@pytest.mark.parametrize("batch", ["n", "1"])
@pytest.mark.parametrize("rates", [[3, 3, 3], [1, 2, 3]], ids=["one rate", "several rates"])
def test_samples_are_found_in_every_input_and_run_however_many_the_file_takes(tmp_path, batch, rates):
    model, session = _load(tmp_path, batch)
    assert {spec.name: (spec.shape, spec.sample_axis) for spec in model.inputs} == {
        "x": ((None, 5), 0),
        "state": ((None, 2, 4), 1),
        "rate": ((None,), None),
    }
    samples = _batch(3, rates)
    torch.testing.assert_close(model.program.predict(samples), _expected(session, samples))


def test_a_batch_of_four_is_filled_up_and_what_was_filled_in_is_left_out(tmp_path):
    model, _ = _load(tmp_path, "4")
    free, _ = _load(tmp_path, "n")
    samples = _batch(6, [2] * 6)
    torch.testing.assert_close(model.program.predict(samples), free.program.predict(samples))


BRANCHED = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[n, 5] x, int64 rate) => (float[n, 4] y)
{
    two = Constant <value_int = 2> ()
    fast = Equal (rate, two)
    y = If (fast) <
        then_branch = quick () => (float[n, 4] t) { t = MatMul (x, weight) },
        else_branch = slow () => (float[n, 4] u) { d = MatMul (x, weight) u = Neg (d) }
    >
}
"""


def test_a_gradient_reaches_the_weights_of_the_branch_that_runs(tmp_path):
    model, _ = _load(tmp_path, "n", BRANCHED)
    assert isinstance(model.program, TorchProgram)
    assert [len(site.uses) for site in model.graph.sites] == [2]
    x = torch.randn(3, 5)
    for rate, sign in ((2, 1.0), (1, -1.0)):
        weight = model.program.parameter("weight").clone().requires_grad_()
        with model.program.replaced({"weight": weight}):
            model.program.module(x=x, rate=torch.full((3,), rate)).sum().backward()
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, sign * x.sum(0)[:, None].expand(5, 4))


CACHED = """
<ir_version: 8, opset_import: ["" : 18]>
net (int64[n, s] input_ids, float[n, 2, t, 3] past_key) => (float[n, s, 5] logits, float[n, 2, t, 3] present_key)
{
    words = Gather (table, input_ids)
    present_key = Identity (past_key)
    logits = MatMul (words, head)
}
"""


def test_a_text_begins_with_an_empty_cache(tmp_path):
    proto = parser.parse_model(CACHED.replace("present_key = Identity (past_key)", "present_key = Neg (past_key)"))
    random = np.random.default_rng(0)
    proto.graph.initializer.extend(
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in (("table", (5, 4)), ("head", (4, 5)))
    )
    (tmp_path / "cached.onnx").write_bytes(proto.SerializeToString())
    model = load_onnx(tmp_path / "cached.onnx")
    samples = from_tokens(model, torch.tensor([[1, 2, 3], [4, 0, 1]]))
    assert samples.inputs["past_key"].shape == (2, 2, 0, 3)
    assert model.program.predict(samples.inputs).shape == (2, 3, 5)
