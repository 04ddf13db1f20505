"""An operator that torch lacks, in the midst, beside, at the end, in a branch: the rest keeps end-loss guidance."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from guidedq.artifacts.samples import SampleSet
from guidedq.calibration.fisher import FisherGuide
from guidedq.calibration.hessian import HessianGuide
from guidedq.errors import ModelError
from guidedq.frontend import onnx as frontend
from guidedq.frontend.onnx import load_onnx
from guidedq.ir.onnx_session import message_bytes
from guidedq.ir.program import TorchProgram
from guidedq.progress import Progress

WIDTH, HIDDEN, OUTPUTS = 6, 8, 5
SAMPLES = SampleSet(inputs={"x": torch.randn(24, 3, WIDTH, generator=torch.Generator().manual_seed(2))})


def _odd(inputs, output, *, lacking, name="odd"):
    """A bias and a Gelu: in one operator that torch lacks, or in two that it has."""
    if lacking:
        return [helper.make_node("BiasGelu", inputs, [output], name=name, domain="com.microsoft")]
    return [
        helper.make_node("Add", inputs, [f"{output}_biased"]),
        helper.make_node("Gelu", [f"{output}_biased"], [output]),
    ]


def _product(value, weight, output):
    return helper.make_node("MatMul", [value, weight], [output], name=weight)


def _midst(lacking):
    return [_product("x", "up", "a"), *_odd(["a", "b"], "c", lacking=lacking), _product("c", "down", "y")]


def _pooled(lacking):
    """An operator of ONNX itself."""
    norm = ("GlobalLpPool", {"p": 2}) if lacking else ("ReduceL2", {"axes": [2]})
    return [
        _product("x", "up", "a"),
        helper.make_node(norm[0], ["a"], ["p"], name="odd", **norm[1]),
        _product("p", "wide", "w"),
        helper.make_node("Tanh", ["w"], ["t"]),
        _product("t", "down", "y"),
    ]


def _beside(lacking):
    return [
        _product("x", "up", "a"),
        helper.make_node("Tanh", ["a"], ["t"]),
        _product("x", "side", "s"),
        *_odd(["s", "b"], "g", lacking=lacking),
        helper.make_node("Add", ["t", "g"], ["c"]),
        _product("c", "down", "y"),
    ]


def _end(lacking):
    return [
        _product("x", "up", "a"),
        helper.make_node("Tanh", ["a"], ["t"]),
        _product("t", "down", "d"),
        *_odd(["d", "e"], "y", lacking=lacking),
    ]


def _branch(lacking):
    """The condition holds for all samples here."""
    inside = [_product("a", "inner", "i"), *_odd(["i", "b"], "taken", lacking=lacking)]
    outputs = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, None)] for name in ("taken", "left")]
    other = [helper.make_node("Neg", ["a"], ["left"])]
    return [
        _product("x", "up", "a"),
        helper.make_node("If", ["always"], ["c"], name="choice",
                         then_branch=helper.make_graph(inside, "then", [], outputs[0]),
                         else_branch=helper.make_graph(other, "else", [], outputs[1])),
        _product("c", "down", "y"),
    ]  # fmt: skip


def _model(make, *, lacking, dtype=np.float32):
    random = np.random.default_rng(0)
    shapes = {"up": (WIDTH, HIDDEN), "side": (WIDTH, HIDDEN), "inner": (HIDDEN, HIDDEN), "down": (HIDDEN, OUTPUTS)}
    shapes |= {"b": (HIDDEN,), "e": (OUTPUTS,), "wide": (1, HIDDEN)}
    arrays = {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    arrays["always"] = np.array(True)
    nodes = make(lacking)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inner = [item.g for node in nodes for item in node.attribute if item.HasField("g")]
    read = {name for node in (*nodes, *(node for graph in inner for node in graph.node)) for name in node.input}
    graph = helper.make_graph(
        nodes,
        "islands",
        [helper.make_tensor_value_info("x", element, ["n", "t", WIDTH])],
        [helper.make_tensor_value_info("y", element, ["n", "t", OUTPUTS])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items() if name in read],
    )
    imports = [helper.make_opsetid("", 20 if make is not _pooled else 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def _loaded(proto, folder, name):
    onnx.save(proto, folder / f"{name}.onnx")
    return load_onnx(folder / f"{name}.onnx")


class _Told(Progress):
    def __init__(self):
        self.notices = []

    def notice(self, text):
        self.notices.append(text)


def _guided(guide, model, folder):
    told = _Told()
    guidance = guide.collect(model, SAMPLES, folder, seed=3, memory_bytes=None, progress=told)
    return guidance, told.notices


def _weight(term):
    return float(term.hessian.diagonal(dim1=1, dim2=2).mean() * term.row_weight.mean())


@pytest.mark.parametrize(
    ("make", "cut", "guided"),
    [
        (_midst, ["up"], ["down"]),
        (_pooled, ["up"], ["wide", "down"]),
        (_beside, ["side"], ["up", "down"]),
        (_end, ["up", "down"], []),
        (_branch, ["up", "inner"], ["down"]),
    ],
    ids=["midst", "pooled", "beside", "end", "branch"],
)
def test_what_lies_behind_an_operator_that_torch_lacks_is_guided_as_if_torch_had_it(make, cut, guided, tmp_path):
    model = _loaded(_model(make, lacking=True), tmp_path, "lacking")
    twin = _loaded(_model(make, lacking=False), tmp_path, "twin")
    assert isinstance(model.program, TorchProgram)
    assert "(node 'odd'" in model.notices[0] and "no gradient passes through" in model.notices[0]
    assert not any("gradient" in notice for notice in twin.notices)
    torch.testing.assert_close(model.program.predict(SAMPLES.inputs), twin.program.predict(SAMPLES.inputs))
    found, told = _guided(FisherGuide(), model, tmp_path / "found")
    expected, nothing = _guided(FisherGuide(), twin, tmp_path / "expected")
    forward, _ = _guided(HessianGuide(), model, tmp_path / "forward")
    assert told == [text for text in told if f"no gradient reaches {cut[0]} ({len(cut)} such weights)" in text] != []
    assert not nothing
    for name in guided:
        (term,), (other,) = found.site(name).terms, expected.site(name).terms
        torch.testing.assert_close(term.hessian, other.hessian, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(term.row_weight, other.row_weight, rtol=1e-4, atol=1e-7)
    factors = [found.site(name).terms[0].hessian / forward.site(name).terms[0].hessian for name in cut]
    for factor in factors:
        torch.testing.assert_close(factor, torch.full_like(factor, float(factors[0].mean())), rtol=1e-3, atol=0)
    level = [np.mean([_weight(found.site(name).terms[0]) for name in names]) for names in (cut, guided or cut)]
    assert level[0] == pytest.approx(level[1], rel=1e-4)
    if not guided:
        assert float(factors[0].mean()) == pytest.approx(1.0, rel=1e-5)


def test_sixteen_bit_models_are_computed_in_float32_around_an_island_too(tmp_path):
    model = _loaded(_model(_midst, lacking=True, dtype=np.float16), tmp_path, "half")
    x = SAMPLES.inputs["x"].half()
    session = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    expected = torch.from_numpy(session.run(None, {"x": x.numpy()})[0]).float()
    torch.testing.assert_close(model.program.predict({"x": x}), expected, rtol=1e-2, atol=1e-2)


def test_a_recurrent_layer_of_an_unknown_activation_is_an_island_and_its_weights_no_sites(tmp_path):
    random = np.random.default_rng(1)
    shapes = {"w": (1, HIDDEN, WIDTH), "r": (1, HIDDEN, HIDDEN), "down": (HIDDEN, OUTPUTS)}
    nodes = [
        helper.make_node("RNN", ["x", "w", "r"], ["all"], hidden_size=HIDDEN, activations=["ThresholdedRelu"],
                         activation_alpha=[0.5], name="odd"),
        _product("all", "down", "y"),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "t", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1, "t", OUTPUTS])],
        [numpy_helper.from_array(random.normal(size=shape).astype("f"), name) for name, shape in shapes.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model = _loaded(proto, tmp_path, "rnn")
    assert [site.name for site in model.graph.sites] == ["down"]
    assert "the activation ThresholdedRelu" in model.notices[0]
    session = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    expected = torch.from_numpy(session.run(None, {"x": SAMPLES.inputs["x"].numpy()})[0])
    torch.testing.assert_close(model.program.predict(SAMPLES.inputs), expected, rtol=1e-4, atol=1e-5)


def test_what_the_runtime_refuses_in_the_midst_names_the_node(tmp_path):
    proto = _model(_midst, lacking=True)
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "b")
    bias.CopyFrom(numpy_helper.from_array(np.zeros(HIDDEN - 1, dtype=np.float32), "b"))
    model = _loaded(proto, tmp_path, "midst")
    with pytest.raises(ModelError, match="BiasGelu \\(node 'odd', opset 1\\) failed, alone in ONNX Runtime"):
        model.program.predict(SAMPLES.inputs)


def test_a_model_of_more_than_one_message_is_not_tried_as_a_whole(tmp_path, monkeypatch):
    proto = _model(_midst, lacking=True)
    expected = _loaded(proto, tmp_path, "small")
    opened = []
    monkeypatch.setattr(frontend, "open_session", lambda model: opened.append(message_bytes(model)))
    _loaded(proto, tmp_path, "small")
    assert len(opened) == 1
    monkeypatch.setattr(frontend, "LARGEST_MESSAGE", opened[0] - 1)
    found = _loaded(proto, tmp_path, "small")
    assert len(opened) == 1
    batch = {"x": torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))}
    assert torch.equal(found.program.predict(batch), expected.program.predict(batch))


def test_a_value_of_a_type_that_torch_lacks_leaves_the_whole_graph_to_the_runtime(tmp_path):
    """Unsigned 64-bit integers are held as signed ones, which the operator would take for something else."""
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.UINT64),
        helper.make_node("ReverseSequence", ["whole", "lengths"], ["turned"], batch_axis=0, time_axis=1, name="odd"),
        helper.make_node("Cast", ["turned"], ["a"], to=TensorProto.FLOAT),
        _product("a", "up", "y"),
    ]
    graph = helper.make_graph(
        nodes,
        "unsigned",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, HIDDEN])],
        [
            numpy_helper.from_array(np.ones((WIDTH, HIDDEN), dtype=np.float32), "up"),
            numpy_helper.from_array(np.array([3, 2]), "lengths"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model = _loaded(proto, tmp_path, "unsigned")
    assert not model.program.differentiable
    assert "'odd'" in model.notices[0] and "forward-only: what each weight reads" in model.notices[0]
