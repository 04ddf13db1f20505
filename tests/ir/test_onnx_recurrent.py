"""Recurrent layers as sites: the runtime's output, and what is heard of their products is what autograd says."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from guidedq.artifacts.samples import SampleSet
from guidedq.calibration.backward_pass import backward_pass, run_both_ways
from guidedq.calibration.forward_pass import forward_pass
from guidedq.frontend.onnx import load_onnx
from guidedq.ir.graph import UseKind

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, SAMPLES, WIDTH, HIDDEN = 5, 3, 6, 4
KINDS = [
    ("LSTM", {}),
    ("LSTM", {"input_forget": 1, "clip": 0.7}),
    ("GRU", {}),
    ("GRU", {"linear_before_reset": 1}),
    ("RNN", {}),
]
DIRECTIONS = ["forward", "reverse", "bidirectional"]


def _model(operator, options, direction="forward", *, lengths=False, states=False, layout=0, seed=0):
    """`x [sample, step, in]` through the layer, all of whose outputs are used; a sample is one sequence."""
    random = np.random.default_rng(seed)
    directions, gates = 1 + (direction == "bidirectional"), GATES[operator]
    arrays = {
        "weights::W": random.normal(size=(directions, gates * HIDDEN, WIDTH)) * 0.4,
        "weights::R": random.normal(size=(directions, gates * HIDDEN, HIDDEN)) * 0.4,
        "b": random.normal(size=(directions, 2 * gates * HIDDEN)),
        "h": random.normal(size=(directions, SAMPLES, HIDDEN)) if layout == 0
        else random.normal(size=(directions, SAMPLES, HIDDEN)).swapaxes(0, 1),
    }  # fmt: skip
    arrays = {name: values.astype(np.float32) for name, values in arrays.items()}
    arrays["lengths"] = np.array([STEPS, 2, 3], dtype=np.int32)
    inputs = ["x" if layout else "turned", "weights::W", "weights::R", "b"]
    inputs += ["lengths" if lengths else "", "h" if states else ""]
    options = options | ({"layout": 1} if layout else {})
    nodes = [
        helper.make_node(operator, inputs, ["all", "last"], "cell", hidden_size=HIDDEN, direction=direction, **options),
        *([] if layout else [helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0, 2])]),
        *([] if layout else [helper.make_node("Transpose", ["all"], ["by_sample"], perm=[2, 0, 1, 3])]),
        helper.make_node("ReduceMean", ["last"], ["m"], axes=[1 if layout else 0], keepdims=0),
        helper.make_node("Reshape", ["m", "whole"], ["one"]),
        helper.make_node("Add", ["all" if layout else "by_sample", "one"], ["y"]),
    ]
    arrays["whole"] = np.array([-1, 1, 1, HIDDEN])
    graph = helper.make_graph(
        nodes if layout else [nodes[1], nodes[0], *nodes[2:]],
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "s", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "s", directions, HIDDEN])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items() if name in _read(nodes)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _read(nodes):
    return {name for node in nodes for name in node.input}


def _loaded(proto, folder):
    onnx.save(proto, folder / "recurrent.onnx")
    return load_onnx(folder / "recurrent.onnx")


def _values(seed=1):
    return torch.randn(SAMPLES, STEPS, WIDTH, generator=torch.Generator().manual_seed(seed))


def _set(values):
    return SampleSet(inputs={"x": values})


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("lengths", "states"), [(False, False), (True, True)])
@pytest.mark.parametrize(("operator", "options"), KINDS, ids=str)
def test_a_recurrent_layer_gives_what_onnx_runtime_gives(operator, options, lengths, states, direction, tmp_path):
    model = _loaded(_model(operator, options, direction, lengths=lengths, states=states), tmp_path)
    assert {site.name: use.kind for site in model.graph.sites for use in site.uses} == {
        "weights::W": UseKind.RECURRENT,
        "weights::R": UseKind.RECURRENT,
    }
    session = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": _values().numpy()})[0]
    torch.testing.assert_close(
        model.program.predict({"x": _values()}), torch.from_numpy(expected), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("operator", "options"), KINDS, ids=str)
def test_samples_first_is_steps_first_turned(operator, options, direction, tmp_path):
    """ONNX Runtime has no `layout=1` on the CPU."""
    found = [
        _loaded(_model(operator, options, direction, states=True, layout=layout), tmp_path).program.predict(
            {"x": _values()}
        )
        for layout in (0, 1)
    ]
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("direction", "lengths"), [("forward", False), ("reverse", True), ("bidirectional", True)])
@pytest.mark.parametrize(("operator", "options"), KINDS, ids=str)
def test_inputs_and_gradients_of_all_steps_make_the_gradient_of_the_weight(
    operator, options, direction, lengths, tmp_path
):
    model = _loaded(_model(operator, options, direction, lengths=lengths), tmp_path)
    batch = _set(_values())
    heard = {}
    backward_pass(model, batch, 0, model.graph.sites, lambda event: heard.update({event.site.name: event}), seed=7)
    weights = {name: model.program.parameter(name).clone().requires_grad_() for name in model.program.aliases}
    with model.program.replaced(weights):
        run_both_ways(model, batch, 0, seed=7)
    for site in model.graph.sites:
        event = heard[site.name]
        assert event.inputs.shape == (SAMPLES, STEPS, site.input_groups, site.columns)
        split = event.gradients.unflatten(2, (site.input_groups, -1))
        gradient = torch.einsum("stgo,stgi->goi", split, event.inputs).flatten(0, 1)
        torch.testing.assert_close(gradient, site.matrix(weights[site.name].grad), rtol=1e-4, atol=1e-6)


def test_what_the_states_weight_reads_is_the_output_one_step_before(tmp_path):
    model = _loaded(_model("LSTM", {}, "bidirectional"), tmp_path)
    heard = {}
    forward_pass(model, _set(_values()), model.graph.sites, lambda event: heard.update({event.site.name: event}))
    torch.testing.assert_close(heard["weights::W"].inputs[:, :, 0], _values())
    states = heard["weights::R"].inputs
    outputs = _outputs(model.path)
    torch.testing.assert_close(states[:, 1:, 0], outputs[:, :-1, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(states[:, :-1, 1], outputs[:, 1:, 1], rtol=1e-5, atol=1e-5)
    assert not bool(states[:, 0, 0].any()) and not bool(states[:, -1, 1].any())


def _outputs(path):
    proto = onnx.load(path)
    proto.graph.output.append(onnx.ValueInfoProto(name="by_sample"))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["by_sample"], {"x": _values().numpy()})[0])


def test_other_weights_stand_in_for_both(tmp_path):
    proto, other = _model("GRU", {}, "bidirectional"), _model("GRU", {}, "bidirectional", seed=5)
    model = _loaded(proto, tmp_path)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in other.graph.initializer}
    names = [site.name for site in model.graph.sites]
    found = model.program.predict({"x": _values()}, weights={name: torch.tensor(arrays[name]) for name in names})
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = torch.from_numpy(session.run(None, {"x": _values().numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_recurrent_layers_of_a_graph_that_torch_cannot_run_are_left_alone(tmp_path):
    """Its bias is stored sparsely. What the states' weight reads cannot be seen from outside."""
    proto = _model("LSTM", {})
    (bias,) = (tensor for tensor in proto.graph.initializer if tensor.name == "b")
    values = numpy_helper.to_array(bias)
    proto.graph.initializer.remove(bias)
    places = numpy_helper.from_array(np.arange(values.size), "places")
    flat = numpy_helper.from_array(values.reshape(-1), "b")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(flat, places, values.shape))
    model = _loaded(proto, tmp_path)
    assert not model.program.differentiable
    assert not model.graph.sites
