"""The interpreter as a module: hooks, ties, gradients, memory, 16-bit weights, control flow."""

from __future__ import annotations

import weakref

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser
from torch.func import functional_call

from guidedq.errors import ModelError, UnsupportedOperatorError
from guidedq.ir.graph import Storage, UseKind
from guidedq.ir.model import InputSpec
from guidedq.ir.onnx_interpreter import OnnxInterpreter, find_weighted, parse_model
from guidedq.ir.program import TorchProgram

VOCABULARY, WIDTH = 11, 6

TIED = """
<ir_version: 8, opset_import: ["" : 18]>
tied (int64[n, s] input_ids) => (float[n, s, 11] logits)
{
    embedded = Gather <axis = 0> (model.embed::table, input_ids)
    first = MatMul (embedded, layers.0/up)
    active = Tanh (first)
    shape = Constant <value_ints = [-1, 8]> ()
    flat = Reshape (active, shape)
    second = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (flat, layers.0/down, bias)
    like = Shape (embedded)
    third = Reshape (second, like)
    mixed = Add (embedded, third)
    head = Transpose <perm = [1, 0]> (model.embed::table)
    logits = MatMul (mixed, head)
}
"""


def _tied(dtype=np.float32):
    random = np.random.default_rng(0)
    shapes = {"model.embed::table": (VOCABULARY, WIDTH), "layers.0/up": (WIDTH, 8), "layers.0/down": (WIDTH, 8)}
    weights = {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    return _with(TIED, weights | {"bias": random.normal(size=(WIDTH,)).astype(np.float32)})


def _with(text, initializers):
    """The model that a text spells, with these initializers. Names may hold any character."""
    stand_ins = {name: f"initializer_{index}" for index, name in enumerate(initializers) if not name.isidentifier()}
    for name, stand_in in stand_ins.items():
        text = text.replace(name, stand_in)
    model = parser.parse_model(text)
    names = {stand_in: name for name, stand_in in stand_ins.items()}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in initializers.items())
    return model


def _interpreter(model, **inputs):
    graph = parse_model(model)
    output = next(iter(graph.outputs.values()))
    graph = graph.pruned(output)
    weighted = find_weighted(graph)
    types = inputs or dict.fromkeys(graph.inputs, torch.float32)
    specs = [InputSpec(name=name, dtype=dtype, shape=(None,)) for name, dtype in types.items()]
    return OnnxInterpreter(graph, weighted, inputs=specs, output=output).eval(), weighted


def _runtime(model, **batch):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: values.numpy() for name, values in batch.items()})[0])


def _replaced(model, name, values):
    other = onnx.ModelProto()
    other.CopyFrom(model)
    tensor = next(tensor for tensor in other.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return other


def _ids(samples, positions):
    return torch.randint(0, VOCABULARY, (samples, positions), generator=torch.Generator().manual_seed(samples))


@settings(deadline=None, max_examples=15)
@given(samples=st.integers(1, 4), positions=st.integers(1, 7))
def test_any_batch_and_sequence_size_gives_what_onnx_runtime_gives(samples, positions):
    model, ids = _tied(), _ids(samples, positions)
    module, _ = _interpreter(model, input_ids=torch.int64)
    torch.testing.assert_close(module(input_ids=ids), _runtime(model, input_ids=ids), rtol=1e-5, atol=1e-5)


def test_a_tied_weight_behind_a_transpose_is_one_site_with_two_uses():
    _, weighted = _interpreter(_tied(), input_ids=torch.int64)
    uses = [entry for entry in weighted if entry.site == "model.embed::table"]
    assert [entry.kind for entry in uses] == [UseKind.EMBEDDING, UseKind.LINEAR]
    assert {entry.storage for entry in uses} == {Storage.OUT_IN}
    assert {entry.site: entry.storage for entry in weighted} == {
        "model.embed::table": Storage.OUT_IN,
        "layers.0/up": Storage.IN_OUT,
        "layers.0/down": Storage.OUT_IN,
    }


@pytest.mark.parametrize("name", ["model.embed::table", "layers.0/up", "layers.0/down"])
def test_a_replaced_weight_stands_in_at_every_use(name):
    model, ids = _tied(), _ids(2, 5)
    module, _ = _interpreter(model, input_ids=torch.int64)
    program = TorchProgram(module=module, aliases=module.aliases)
    other = np.random.default_rng(5).normal(size=program.parameter(name).shape).astype(np.float32)
    expected = _runtime(_replaced(model, name, other), input_ids=ids)
    found = program.predict({"input_ids": ids}, weights={name: torch.from_numpy(other)})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    own = program.predict({"input_ids": ids})
    torch.testing.assert_close(own, _runtime(model, input_ids=ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["model.embed::table", "layers.0/up", "layers.0/down"])
def test_the_gradient_of_a_weight_is_the_slope_that_onnx_runtime_shows(name):
    model, ids = _tied(), _ids(2, 5)
    module, _ = _interpreter(model, input_ids=torch.int64)
    path = module.aliases[name]
    weight = module.get_parameter(path).detach().clone().requires_grad_()
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    functional_call(module, {path: weight}, args=(), kwargs={"input_ids": ids}).square().sum().backward()
    step = 1e-2
    values = [
        _runtime(_replaced(model, name, (weight + sign * step * direction).detach().numpy()), input_ids=ids)
        for sign in (1, -1)
    ]
    slope = (values[0].double().square().sum() - values[1].double().square().sum()) / (2 * step)
    assert weight.grad is not None
    torch.testing.assert_close((weight.grad * direction).sum().double(), slope, rtol=2e-3, atol=1e-3)


def test_hooks_on_an_operator_see_its_input_and_output_sample_by_sample():
    module, weighted = _interpreter(_tied(), input_ids=torch.int64)
    seen = {}

    def watch(name):
        return lambda _module, arguments, output: seen.__setitem__(name, (arguments[0], output))

    for entry in weighted:
        module.get_submodule(entry.node.name).register_forward_hook(watch(entry.node.name))
    ids = _ids(3, 4)
    logits = module(input_ids=ids)
    embedding, up, down, head = (seen[entry.node.name] for entry in weighted)
    assert torch.equal(embedding[0], ids)
    torch.testing.assert_close(up[1], up[0] @ module.get_parameter(module.aliases["layers.0/up"]))
    torch.testing.assert_close(down[0], 0.5 * torch.tanh(up[1]))  # Gemm's alpha; samples and positions kept apart
    assert down[1].shape == (3, 4, WIDTH)
    torch.testing.assert_close(head[1], logits)


POSITIONS = """
<ir_version: 8, opset_import: ["" : 18]>
net (int64[n, s] ids) => (float[n, s, 3] y)
{
    sizes = Shape (ids)
    one = Constant <value_int = 1> ()
    zero = Constant <value_int = 0> ()
    length = Gather (sizes, one)
    steps = Range (zero, length, one)
    places = Gather (positions, steps)
    words = Gather (table, ids)
    x = Add (words, places)
    y = Tanh (x)
}
"""


def test_positions_are_looked_up_sample_by_sample_so_that_their_gradients_can_be_told_apart():
    random = np.random.default_rng(0)
    model = _with(POSITIONS, {name: random.normal(size=(11, 3)).astype("f") for name in ("positions", "table")})
    module, weighted = _interpreter(model, ids=torch.int64)
    ids = _ids(4, 5)
    torch.testing.assert_close(module(ids=ids), _runtime(model, ids=ids), rtol=1e-5, atol=1e-5)
    seen = {}
    for entry in weighted:

        def hook(_module, arguments, output, site=entry.site):
            output = output.requires_grad_()
            output.retain_grad()
            seen[site] = (arguments[0], output)
            return output

        module.get_submodule(entry.node.name).register_forward_hook(hook)
    module(ids=ids).square().sum().backward()
    indices, output = seen["positions"]
    assert torch.equal(indices, torch.arange(5).expand(4, 5))
    torch.testing.assert_close(output.grad, seen["table"][1].grad)


def test_weights_are_frozen_and_no_gradient_is_kept():
    module, _ = _interpreter(_tied(), input_ids=torch.int64)
    assert [parameter.requires_grad for parameter in module.parameters()] == [False] * 3
    assert not module(input_ids=_ids(1, 2)).requires_grad


def test_half_precision_weights_are_kept_as_stored_and_computed_in_float32():
    half = _tied(np.float16)
    module, weighted = _interpreter(half, input_ids=torch.int64)
    stored = {entry.site: module.get_parameter(module.aliases[entry.site]) for entry in weighted}
    assert {weight.dtype for weight in stored.values()} == {torch.float16}
    wide = _tied()
    for name, weight in stored.items():
        wide = _replaced(wide, name, weight.float().numpy())
    ids = _ids(2, 5)
    torch.testing.assert_close(module(input_ids=ids), _runtime(wide, input_ids=ids), rtol=1e-5, atol=1e-5)


def test_a_value_is_let_go_after_its_last_use():
    module, weighted = _interpreter(_tied(), input_ids=torch.int64)
    alive = []
    names = [entry.node.name for entry in weighted]
    first = module.get_submodule(names[1])
    first.register_forward_hook(lambda _module, _arguments, output: alive.append(weakref.ref(output)))
    states = []
    module.get_submodule(names[-1]).register_forward_pre_hook(lambda *_: states.append(alive[0]() is None))
    with torch.no_grad():
        module(input_ids=_ids(2, 3))
    assert states == [True]


CONVOLUTIONS = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[n, 4, 9] x) => (float[n, 6, m] y)
{
    a = Conv <group = 2, pads = [2, 1], strides = [2]> (x, grouped, bias)
    b = Relu (a)
    y = Conv <auto_pad = "SAME_UPPER"> (b, plain)
}
"""


def test_convolutions_with_groups_and_uneven_padding_give_modules_whose_settings_explain_the_output():
    random = np.random.default_rng(0)
    weights = {"grouped": (6, 2, 3), "plain": (6, 6, 4), "bias": (6,)}
    model = _with(CONVOLUTIONS, {name: random.normal(size=shape).astype("f") for name, shape in weights.items()})
    module, weighted = _interpreter(model)
    x = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(x=x), _runtime(model, x=x), rtol=1e-5, atol=1e-5)
    assert [entry.groups for entry in weighted] == [2, 1]
    for entry in weighted:
        part = module.get_submodule(entry.node.name)
        seen = []
        handle = part.register_forward_hook(
            lambda _module, arguments, output, seen=seen: seen.append((*arguments, output))
        )
        module(x=x)
        handle.remove()
        values, *bias, output = seen[0]
        again = torch.nn.functional.conv1d(
            values, part.weight, *(bias or [None]), part.stride, part.padding, part.dilation, part.groups
        )
        torch.testing.assert_close(again, output)


def test_a_weight_that_something_else_reads_too_is_no_site():
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    net (float[n, 4] x) => (float[n, 4] y)
    {
        a = MatMul (x, shared)
        b = MatMul (a, alone)
        c = ReduceSum (shared)
        y = Add (b, c)
    }
    """
    random = np.random.default_rng(0)
    model = _with(text, {name: random.normal(size=(4, 4)).astype("f") for name in ("shared", "alone")})
    module, weighted = _interpreter(model)
    assert [entry.site for entry in weighted] == ["alone"]
    x = torch.randn(3, 4)
    torch.testing.assert_close(module(x=x), _runtime(model, x=x), rtol=1e-5, atol=1e-5)


def test_a_table_of_rotary_cosines_or_masks_is_no_site_but_an_embedding_is():
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    net (int64[n] p) => (float[n, 4] y)
    {
        c = Gather (cosines, p)
        s = Gather (sines, p)
        e = Gather (embedding, p)
        m = Gather (masks, p)
        a = Mul (c, e)
        b = Add (a, m)
        y = Add (b, s)
    }
    """
    angles = np.outer(np.arange(16), [1.0, 0.3, 0.1, 0.01]).astype("f")
    tables = {"cosines": np.cos(angles), "sines": np.sin(angles).astype(np.float16).astype("f")}
    embedding = np.random.default_rng(0).normal(size=(16, 4)).astype("f") / 10
    embedding[0] = 0  # a padding row must not make it look like sines
    tables["masks"] = np.where(np.arange(16)[:, None] > 2, embedding, -np.inf)
    _, weighted = _interpreter(_with(text, tables | {"embedding": embedding}), p=torch.int64)
    assert [entry.site for entry in weighted] == ["embedding"]


BRANCHES = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[n, 3] x, int64 turns) => (float[n, 3] y)
{
    zero = Constant <value_float = 0.0> ()
    total = ReduceSum <keepdims = 0> (x)
    positive = Greater (total, zero)
    chosen = If (positive) <
        then_branch = yes () => (float[n, 3] t) { t = Mul (x, w) },
        else_branch = no () => (float[n, 3] e) { two = Constant <value_float = 2.0> () e = Mul (x, two) }
    >
    going = Constant <value = bool {1}> ()
    y, rows = Loop (turns, going, chosen) <
        body = turn (int64 i, bool g, float[n, 3] v) => (bool again, float[n, 3] next, float[n, 3] row) {
            again = Identity (g)
            next = Add (v, x)
            row = Identity (next)
        }
    >
}
"""


@pytest.mark.parametrize("sign", [1, -1])
def test_branches_and_loops_run_with_what_they_capture(sign):
    model = _with(BRANCHES, {"w": np.array([2, 3, 5], dtype=np.float32)})
    module, _ = _interpreter(model, x=torch.float32, turns=torch.int64)
    x = sign * torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    turns = torch.tensor(3)
    expected = x * (torch.tensor([2.0, 3, 5]) if sign > 0 else 2) + 3 * x
    torch.testing.assert_close(module(x=x, turns=turns), expected)


def test_an_unknown_operator_is_named_with_its_node():
    text = """
    <ir_version: 8, opset_import: ["" : 18, "org.alien" : 1]>
    net (float[n] x) => (float[n] y) { y = org.alien.Probe (x) }
    """
    model = parser.parse_model(text)
    model.graph.node[0].name = "the_probe"
    with pytest.raises(UnsupportedOperatorError, match=r"org\.alien\.Probe \(node 'the_probe'"):
        _interpreter(model)


def test_a_failing_operator_is_named_with_its_node_and_shapes():
    module, _ = _interpreter(_tied(), input_ids=torch.int64)
    with pytest.raises(ModelError, match=r"11 rows was asked for rows 3 to 99"):
        module(input_ids=torch.tensor([[3, 99]]))
    with pytest.raises(ModelError, match="takes the inputs"):
        module(tokens=torch.tensor([[3]]))
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    net (float[n, m] x, float[m, n] z) => (float[n, n] y) { y = Add (x, z) }
    """
    module, _ = _interpreter(parser.parse_model(text))
    with pytest.raises(
        ModelError, match=r"Add \(node 'Add_0', opset 18\) failed on inputs of shapes \[2, 3\], \[5, 2\]"
    ):
        module(x=torch.zeros(2, 3), z=torch.zeros(5, 2))


def test_nodes_named_like_parts_of_a_module_or_like_one_another_get_names_of_their_own():
    model = _tied()
    for node in model.graph.node:
        node.name = "forward.training"
    model.graph.node[1].name = "forward"
    module, weighted = _interpreter(model, input_ids=torch.int64)
    names = [entry.node.name for entry in weighted]
    assert len(set(names)) == 4
    ids = _ids(2, 3)
    torch.testing.assert_close(module(input_ids=ids), _runtime(_tied(), input_ids=ids), rtol=1e-5, atol=1e-5)


def test_a_value_that_nothing_makes_is_an_error_that_names_it():
    model = _tied()
    del model.graph.initializer[1]
    with pytest.raises(ModelError, match=r"reads 'layers\.0/up'"):
        parse_model(model)
