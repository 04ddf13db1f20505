"""Rewrites of ONNX graphs: ONNX Runtime gives the same before and after, and weights are found, and stored once."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from guidedq.errors import ModelError
from guidedq.frontend.onnx import load_onnx
from guidedq.frontend.onnx_rewrites import rewrite

NORM = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 4, 8, 8] x) => (float[n, 6, p, q] y)
{
    a = Conv <kernel_shape = [3, 3]> (x, w, b)
    c = BatchNormalization <epsilon = 0.01> (a, scale, offset, mean, variance)
    d = Relu (c)
    e = Conv <kernel_shape = [1, 1]> (d, v)
    y = BatchNormalization (e, scale, other, mean, variance)
}
"""
BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 4] x, int64 rate) => (float[n, 6] y)
{
    fast = Constant <value_int = 16000> ()
    is_fast = Equal (rate, fast)
    y = If (is_fast) <
        then_branch = quick () => (float[n, 6] t) { w = Constant <value = float[4, 6] {TENSOR}> () t = MatMul (x, w) },
        else_branch = slow () => (float[n, 6] u) { w = Constant <value = float[4, 6] {TENSOR2}> () u = MatMul (x, w) }
    >
}
"""
TIED = """
<ir_version: 8, opset_import: ["" : 17]>
net (int64[n, s] input_ids) => (float[n, s, 40] logits)
{
    words = Gather (table, input_ids)
    a = MatMul (words, first)
    b = MatMul (words, second)
    c = Add (a, b)
    logits = MatMul (c, head)
}
"""

ORDERED = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[s, n, 6] x, int64 rate) => (float[s, 1, n, 4] y)
{
    zero = Constant <value_ints = [0]> ()
    four = Constant <value_ints = [4]> ()
    last = Constant <value_ints = [16]> ()
    fast = Constant <value_int = 16000> ()
    is_fast = Equal (rate, fast)
    y = If (is_fast) <
        then_branch = quick () => (float[s, 1, n, 4] t) {
            first = Slice (coming, zero, four, zero)
            others = Slice (coming, four, last, zero)
            ordered = Concat <axis = 0> (others, first)
            w = Unsqueeze (ordered, zero)
            r = Unsqueeze (states, zero)
            t, h = LSTM <hidden_size = 4> (x, w, r)
        },
        else_branch = slow () => (float[s, 1, n, 4] u) {
            kept = Concat <axis = 0> (coming)
            w = Unsqueeze (kept, zero)
            turned = Neg (states)
            r = Unsqueeze (turned, zero)
            u, h = LSTM <hidden_size = 4> (x, w, r)
        }
    >
}
"""


def _ordered():
    """PyTorch's order of gates made ONNX's inside the graph; names of the two branches are alike."""
    random = np.random.default_rng(5)
    shapes = {"coming": (16, 6), "states": (16, 4)}
    return _with(ORDERED, {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


def _branches():
    random = np.random.default_rng(3)
    texts = (", ".join(f"{value:.6f}" for value in random.normal(size=24)) for _ in range(2))
    return parser.parse_model(BRANCHES.replace("TENSOR2", next(texts)).replace("TENSOR", next(texts)))


def _with(text, arrays):
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in arrays.items())
    return model


def _norm():
    random = np.random.default_rng(1)
    shapes = {
        "w": (6, 4, 3, 3),
        "b": (6,),
        "v": (6, 6, 1, 1),
        "scale": (6,),
        "offset": (6,),
        "other": (6,),
        "mean": (6,),
    }
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return _with(NORM, arrays | {"variance": random.uniform(0.5, 2, size=6).astype(np.float32)})


def _tied():
    random = np.random.default_rng(2)
    table, square = random.normal(size=(40, 32)), random.normal(size=(32, 32))
    arrays = {"head": table.T, "first": square, "second": square, "table": table}
    return _with(TIED, {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in arrays.items()})


def _run(model, **feeds):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


IMAGES = np.random.default_rng(0).normal(size=(3, 4, 8, 8)).astype(np.float32)
STEPS = np.random.default_rng(0).normal(size=(3, 2, 6)).astype(np.float32)
ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("make", "feeds"),
    [
        (_norm, {"x": IMAGES}),
        (_branches, {"x": ROWS, "rate": np.array(16000)}),
        (_branches, {"x": ROWS, "rate": np.array(8000)}),
        (_tied, {"input_ids": np.arange(12).reshape(3, 4)}),
        (_ordered, {"x": STEPS, "rate": np.array(16000)}),
        (_ordered, {"x": STEPS, "rate": np.array(8000)}),
    ],
    ids=["norm", "then", "else", "tied", "ordered", "turned"],
)
def test_the_rewritten_graph_gives_what_the_graph_gave(make, feeds):
    model = make()
    expected = _run(model, **feeds)
    rewrite(model)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(_run(model, **feeds), expected, rtol=1e-4, atol=1e-5)


def test_batch_norms_become_part_of_the_convolutions_before_them():
    model = _norm()
    rewrite(model)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu", "Conv"]
    assert {tensor.name for tensor in model.graph.initializer} == {"w", "v", "offset", "other"}


def test_a_batch_norm_whose_convolution_something_else_reads_is_left():
    model = _norm()
    model.graph.node[2].input[0] = "a"
    rewrite(model)
    assert [node.op_type for node in model.graph.node].count("BatchNormalization") == 1


def test_equal_weights_are_one_site_and_a_transposed_copy_is_a_tie(tmp_path):
    onnx.save(_tied(), tmp_path / "tied.onnx")
    model = load_onnx(tmp_path / "tied.onnx")
    assert {site.name: len(site.uses) for site in model.graph.sites} == {"table": 2, "first": 2}
    assert model.parameters == 40 * 32 + 32 * 32


def test_weights_of_both_branches_of_an_if_are_sites(tmp_path):
    onnx.save(_branches(), tmp_path / "branches.onnx")
    model = load_onnx(tmp_path / "branches.onnx")
    assert [site.shape for site in model.graph.sites] == [(4, 6), (4, 6)]
    assert model.parameters == 48


def test_weights_that_a_recurrent_layer_reads_through_moves_are_sites_and_stored_once(tmp_path):
    """In one branch what is made of the states is computed, so it is left alone, and what it is made of is kept."""
    onnx.save(_ordered(), tmp_path / "ordered.onnx")
    model = load_onnx(tmp_path / "ordered.onnx")
    assert [(site.name, site.shape) for site in model.graph.sites] == [
        ("coming_1", (1, 16, 6)),
        ("states_1", (1, 16, 4)),
        ("coming_2", (1, 16, 6)),
    ]
    assert model.parameters == 2 * 16 * 6 + 2 * 16 * 4
    proto = _ordered()
    rewrite(proto)
    assert {tensor.name for tensor in proto.graph.initializer if len(tensor.dims) == 2} == {"states"}


def test_moves_that_cannot_be_made_are_left_to_whoever_runs_the_graph(tmp_path):
    proto = _ordered()
    then = next(node for node in proto.graph.node if node.op_type == "If").attribute[0].g
    next(node for node in then.node if node.op_type == "Concat").attribute[0].i = 5
    rewrite(proto)
    assert "coming" in {tensor.name for tensor in proto.graph.initializer}
    onnx.save(proto, tmp_path / "broken.onnx")
    model = load_onnx(tmp_path / "broken.onnx")
    with pytest.raises(ModelError, match="Concat"):
        model.program.predict({"x": torch.from_numpy(STEPS).transpose(0, 1), "rate": torch.full((2,), 16000)})


def _biased(shape, bias, *, swapped=False, read_twice=False):
    """Two products with biases and a Tanh between, the first of a tensor of this shape."""
    random = np.random.default_rng(len(shape))
    first, second = ("Add (b, p)", "Add (c, q)") if swapped else ("Add (p, b)", "Add (q, c)")
    made = ", ".join(f"d{axis}" for axis in range(max(len(shape), len(bias))))
    return _with(
        f"""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[{", ".join(map(str, shape))}] x) => (float[{made}] y)
        {{
            p = MatMul (x, w)
            s = {first}
            t = Tanh (s)
            q = MatMul (t, v)
            r = {second}
            {"z = Neg (q) y = Add (r, z)" if read_twice else "y = Neg (r)"}
        }}
        """,
        {
            "w": random.normal(size=(shape[-1], 5)).astype(np.float32),
            "v": random.normal(size=(5, 3)).astype(np.float32),
            "b": random.normal(size=bias).astype(np.float32),
            "c": random.normal(size=3).astype(np.float32),
        },
    )


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    bias=st.sampled_from([(5,), (1, 5), (1,), (1, 1, 5), ()]),
    swapped=st.booleans(),
    read_twice=st.booleans(),
)
def test_products_and_their_biases_are_joined_only_where_nothing_changes(shape, bias, swapped, read_twice):
    model = _biased(shape, bias, swapped=swapped, read_twice=read_twice)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    before = _run(model, x=x)
    rewrite(model)
    onnx.checker.check_model(model)
    assert np.allclose(_run(model, x=x), before, rtol=1e-5, atol=1e-5)
    matrix = len(shape) == 2 and len(bias) < 3
    gemms = matrix * ((bias in ((5,), (1, 5))) + (not read_twice))
    assert [node.op_type for node in model.graph.node].count("Gemm") == gemms


def test_products_of_tensors_of_unknown_rank_are_left_alone():
    model = _biased([2, 4], (5,))
    for entry in (*model.graph.input, *model.graph.output):
        entry.type.tensor_type.ClearField("shape")
    rewrite(model)
    assert "Gemm" not in {node.op_type for node in model.graph.node}
