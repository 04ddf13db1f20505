"""Several outputs of an ONNX file: which of them the loss is about, what it is, and that all are written."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper, parser

import guidedq
from guidedq.artifacts.samples import SampleSet
from guidedq.calibration.backward_pass import run_both_ways
from guidedq.calibration.divergence import divergence_gradient
from guidedq.evaluation import measure
from guidedq.frontend.onnx import load_onnx
from guidedq.ir.model import Objective
from guidedq.ir.program import TorchProgram
from guidedq.progress import SilentProgress

HEADS = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[n, 32] x) => (float[n, 7, 2] boxes, int64[n] best, float[n, 64] scores)
{
    a = MatMul (x, trunk)
    b = Tanh (a)
    c = MatMul (b, first)
    shape = Constant <value_ints = [0, 7, 2]> ()
    d = Reshape (c, shape)
    boxes = Sin (d)
    e = MatMul (b, second)
    scores = Mul (e, scale)
    best = ArgMax <axis = 1, keepdims = 0> (e)
}
"""
SHAPES = {"trunk": (32, 48), "first": (48, 14), "second": (48, 64)}
SCALE = 1000.0


def _saved(folder, text=HEADS, shapes=SHAPES, **constants):
    random = np.random.default_rng(0)
    model = parser.parse_model(text)
    arrays = {name: random.normal(size=shape).astype(np.float32) / 5 for name, shape in shapes.items()}
    arrays |= {name: np.asarray(values) for name, values in constants.items()}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def _heads(folder):
    return _saved(folder, scale=np.float32(SCALE))


def _parts(model, batch, weights=None):
    """The two outputs, by hand."""
    held = {name: model.program.parameter(name) for name in SHAPES} | (weights or {})
    hidden = torch.tanh(batch["x"] @ held["trunk"])
    return torch.sin(hidden @ held["first"]), SCALE * (hidden @ held["second"])


def _relative(original, quantized):
    """Half the relative squared error of each output, the mean over both, `[sample]`."""
    errors = [(q - p).square().sum(1) / p.square().sum(1) for p, q in zip(original, quantized, strict=True)]
    return torch.stack(errors).mean(0) / 2


@pytest.fixture(name="model")
def _model(tmp_path):
    return load_onnx(_heads(tmp_path))


@pytest.fixture(name="batch")
def _batch():
    return {"x": torch.randn(6, 32, generator=torch.Generator().manual_seed(1))}


def test_weights_of_every_head_are_sites_and_outputs_without_floats_are_told(model, batch):
    assert model.objective is Objective.JOINT_VALUES
    assert model.objective.unit == "relative squared error"
    assert model.output.names == ("boxes", "scores")
    assert sorted(site.name for site in model.graph.sites) == ["first", "second", "trunk"]
    assert model.graph.head is None
    assert any("boxes, scores, each" in notice and "best (no floats)" in notice for notice in model.notices)
    output = model.program.predict(batch)
    assert output.shape == (6, 2, 64)
    boxes, scores = _parts(model, batch)
    torch.testing.assert_close(output[:, 0, :14], boxes)
    assert not output[:, 0, 14:].any()
    torch.testing.assert_close(output[:, 1], scores, rtol=1e-4, atol=1e-2)


def test_the_measured_error_is_the_mean_of_the_outputs_relative_errors(model, batch):
    weights = {"first": model.program.parameter("first") * 1.1}
    found = measure(
        samples=SampleSet(inputs=batch),
        objective=model.objective,
        predict_original=model.program.predict,
        predict_quantized=lambda inputs: model.program.predict(inputs, weights=weights),
        progress=SilentProgress(),
    )
    expected = _relative(_parts(model, batch), _parts(model, batch, weights))
    torch.testing.assert_close(torch.tensor(found.kl_by_sample), expected, rtol=1e-4, atol=1e-8)


def test_one_output_joined_measures_and_guides_as_it_does_alone(batch):
    output = torch.randn(6, 1, 9, generator=torch.Generator().manual_seed(2))
    other = output + 0.1 * output.flip(0)
    joint, alone = other.clone(), other[:, 0].clone()
    samples = SampleSet(inputs=batch)
    found = divergence_gradient(Objective.JOINT_VALUES, output, joint, samples)
    expected = divergence_gradient(Objective.VALUES, output[:, 0], alone, samples)
    assert found == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(joint[:, 0], alone)


def test_the_gradient_of_the_divergence_is_that_of_autograd(model, batch):
    original = model.program.predict(batch)
    quantized = original + 0.05 * original.roll(1, 0)
    leaf = quantized.clone().requires_grad_()
    parts = [[values[:, 0, :14], values[:, 1]] for values in (original, leaf)]
    loss = _relative(*parts).mean()
    loss.backward()
    found = divergence_gradient(model.objective, original, quantized, SampleSet(inputs=batch))
    assert found == pytest.approx(float(loss), rel=1e-5)
    torch.testing.assert_close(quantized, leaf.grad)


def test_squared_gradients_are_the_second_derivative_of_the_joint_loss(model, batch):
    """The mean square of the sampled gradients by a weight, over many draws, against the loss at a small step."""
    assert isinstance(model.program, TorchProgram)
    one = SampleSet(inputs={"x": batch["x"][:1]})
    generator = torch.Generator().manual_seed(3)
    for name, shape in SHAPES.items():
        step = 1e-3 * torch.randn(shape, generator=generator)
        parameter = model.program.parameter(name)
        parameter.requires_grad_()
        squares = []
        for seed in range(400):
            parameter.grad = None
            run_both_ways(model, one, 0, seed=seed)
            squares.append(float((parameter.grad * step).sum().square()))
        parameter.requires_grad_(False)
        expected = _relative(_parts(model, one.inputs), _parts(model, one.inputs, {name: parameter + step}))
        assert sum(squares) / len(squares) / 2 == pytest.approx(float(expected), rel=0.25), name


def test_an_output_that_is_zero_throughout_counts_for_nothing():
    original = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    quantized = torch.tensor([[[3.0, 3.0], [0.0, 1.0]]])
    found = divergence_gradient(Objective.JOINT_VALUES, original, quantized, SampleSet(inputs={"x": torch.zeros(1, 1)}))
    assert found == pytest.approx(0.5 / 25)


def test_the_file_has_all_outputs_and_both_heads_are_compressed(tmp_path):
    path = _heads(tmp_path)
    data = np.random.default_rng(0).normal(size=(48, 32)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=data)
    options = {"workspace": tmp_path / "workspace", "effort": "quick"}
    report = guidedq.compile(path, budget="12bits", data=tmp_path / "x.npz", out=tmp_path / "out", **options).report
    written = onnx.load(tmp_path / "out" / "model.onnx")
    assert [entry.name for entry in written.graph.output] == ["boxes", "best", "scores"]
    assert {site.name for site in report.sites} == set(SHAPES)
    assert 0 < report.measured.kl < 0.01
    session = guidedq.load_quantized(tmp_path / "out")
    boxes, _, scores = (torch.from_numpy(values) for values in session.run(None, {"x": data[:5]}))
    original = _parts(load_onnx(path), {"x": torch.from_numpy(data[:5])})
    for before, after in zip(original, (boxes.flatten(1), scores), strict=True):
        assert float((after - before).norm() / before.norm()) < 0.2


STATEFUL = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[n, 4] x, float[2, n, 4] state) => (float[n, 3] speech, float[2, n, 4] stateN)
{
    a = Add (x, x)
    b = MatMul (a, trunk)
    speech = Sin (b)
    stateN = MatMul (state, kept)
}
"""
LENGTHS = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[n, 4] x) => (float[n, 3] y, float[k, 3] found, float[3, n] turned, float[m, 1] parts)
{
    product = MatMul (x, trunk)
    y = Sin (product)
    z = Greater (y, zero)
    places = NonZero (z)
    back = Transpose <perm = [1, 0]> (places)
    axis = Constant <value_int = 0> ()
    row = Gather <axis = 1> (back, axis)
    found = Gather (y, row)
    turned = Transpose <perm = [1, 0]> (product)
    split = Constant <value_ints = [-1, 1]> ()
    parts = Reshape (product, split)
}
"""


def test_a_state_does_not_count_beside_an_output(tmp_path):
    model = load_onnx(_saved(tmp_path, STATEFUL, {"trunk": (4, 3), "kept": (4, 4)}))
    assert model.objective is Objective.VALUES
    assert model.output.names == ("speech",)
    assert any("not about stateN (a state)" in notice for notice in model.notices)


def test_outputs_whose_first_axis_is_not_the_samples_do_not_count(tmp_path):
    """By a declared size, by an operator that makes lengths of values, and by what a trial run shows."""
    model = load_onnx(_saved(tmp_path, LENGTHS, {"trunk": (4, 3)}, zero=np.float32(0)))
    assert model.objective is not Objective.JOINT_VALUES
    assert model.output.names == ("y",)
    assert model.program.predict({"x": torch.zeros(3, 4)}).shape == (3, 3)
    notice = next(notice for notice in model.notices if "loss is about" in notice)
    assert "found (of a length that depends on values)" in notice
    assert "turned, parts (without an axis of samples in front)" in notice


CLASSES = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[n, 4] x) => (float[n, 5] age, float[n, 3] OTHER)
{
    a = MatMul (x, trunk)
    age = MatMul (a, first)
    OTHER = MatMul (a, second)
}
"""


@pytest.mark.parametrize(("name", "joint"), [("gender", True), ("embedding", False)])
def test_two_classifiers_are_guided_together_and_a_classifier_beside_features_alone(tmp_path, name, joint):
    shapes = {"trunk": (4, 6), "first": (6, 5), "second": (6, 3)}
    model = load_onnx(_saved(tmp_path, CLASSES.replace("OTHER", name), shapes))
    assert model.objective is (Objective.JOINT_VALUES if joint else Objective.CLASSIFIER)
    assert len(model.graph.sites) == 2 + joint


FIXED = HEADS.replace("float[n, 32]", "float[2, 32]").replace("[n,", "[2,").replace("[n]", "[2]")


def test_a_fixed_batch_is_run_part_by_part(tmp_path, batch):
    model = load_onnx(_saved(tmp_path, FIXED, scale=np.float32(SCALE)))
    assert model.inputs[0].batch == 2
    samples = {"x": batch["x"][:5]}
    boxes, scores = _parts(model, samples)
    output = model.program.predict(samples)
    torch.testing.assert_close(output[:, 0, :14], boxes)
    torch.testing.assert_close(output[:, 1], scores, rtol=1e-4, atol=1e-2)


TOWERS = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[n, 8] image, float[n, 6] audio, float[n, 4] h)
    => (float[n, 5] image_embedding, float[n, 5] audio_representation, float[n, 4] h_out, float[n, 8] copy)
{
    image_embedding = MatMul (image, first)
    audio_representation = MatMul (audio, second)
    h_out = MatMul (h, third)
    copy = Identity (image)
}
"""


def test_outputs_are_states_by_whole_words_only(tmp_path):
    path = _saved(tmp_path, TOWERS, {"first": (8, 5), "second": (6, 5), "third": (4, 4)})
    model = load_onnx(path)
    assert model.output.names == ("image_embedding", "audio_representation")
    (notice,) = [notice for notice in model.notices if "the loss is about" in notice]
    assert "h_out (a state)" in notice
    assert "copy (behind no weight)" in notice
