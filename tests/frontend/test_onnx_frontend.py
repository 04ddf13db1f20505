"""ONNX files in: what is refused at the door, and what the graph, the objective and the inputs are taken for."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest
import torch
from onnx import external_data_helper, helper, numpy_helper, parser
from torch import nn

from guidedq.errors import ModelError
from guidedq.frontend.onnx import load_onnx
from guidedq.ir.graph import Storage, UseKind
from guidedq.ir.model import InputSpec, Objective, OutputSpec
from guidedq.ir.program import TorchProgram

LANGUAGE_MODEL = """
<ir_version: 8, opset_import: ["" : 18]>
lm (int64[n, s] input_ids, int64[n, s] attention_mask) => (float[n, s, 11] logits)
{
    words = Gather (table, input_ids)
    sizes = Shape (input_ids)
    axis = Constant <value_int = 1> ()
    length = Gather (sizes, axis)
    zero = Constant <value_int = 0> ()
    steps = Range (zero, length, axis)
    places = Gather (positions, steps)
    x = Add (words, places)
    mask = Cast <to = 1> (attention_mask)
    last = Constant <value_ints = [-1]> ()
    wide = Unsqueeze (mask, last)
    seen = Mul (x, wide)
    normal = LayerNormalization (seen, scale)
    q = MatMul (normal, query)
    k = MatMul (normal, key)
    mixed = Add (q, k)
    split = Constant <value_ints = [0, 0, 2, 3]> ()
    heads = Reshape (mixed, split)
    whole = Constant <value_ints = [0, 0, 6]> ()
    joined = Reshape (heads, whole)
    active = Tanh (joined)
    tied = Identity (table)
    head = Transpose <perm = [1, 0]> (tied)
    logits = MatMul (active, head)
}
"""
SHAPES = {"table": (11, 6), "positions": (32, 6), "scale": (6,), "query": (6, 6), "key": (6, 6)}


def _model(text, shapes, seed=0):
    random = np.random.default_rng(seed)
    model = parser.parse_model(text)
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return model


def _load(folder, model, name="model.onnx", **options):
    path = folder / name
    onnx.save(model, path, **options)
    return load_onnx(path)


@pytest.fixture(name="language_model")
def _language_model(tmp_path):
    return _load(tmp_path, _model(LANGUAGE_MODEL, SHAPES))


def test_a_language_model_is_known_by_its_tokens_and_its_output(language_model):
    assert language_model.objective is Objective.LANGUAGE_MODEL
    assert language_model.vocabulary_size == 11
    assert language_model.context_length == 32
    assert language_model.graph.head == "table"
    assert language_model.source == "onnx"
    assert language_model.name == "model"
    assert language_model.inputs == (
        InputSpec(name="input_ids", dtype=torch.int64, shape=(None, None)),
        InputSpec(name="attention_mask", dtype=torch.int64, shape=(None, None)),
    )


def test_sites_come_in_the_order_of_the_data_with_ties_and_shared_inputs(language_model):
    graph = language_model.graph
    assert [site.name for site in graph.sites] == ["table", "positions", "query", "key"]
    table, positions, query, _ = graph.sites
    assert [use.kind for use in table.uses] == [UseKind.EMBEDDING, UseKind.LINEAR]
    assert [use.kind for use in positions.uses] == [UseKind.EMBEDDING]
    assert (table.storage, query.storage) == (Storage.OUT_IN, Storage.IN_OUT)
    assert graph.shared_inputs == (("query", "key"),)
    for site in graph.sites:
        for use in site.uses:
            assert graph.operators.nodes[use.operator]["site"] == site.name
            language_model.program.operator(use.operator)


def test_edges_pass_through_plumbing_and_not_through_shapes(language_model):
    graph = language_model.graph.operators
    kinds = {name: graph.nodes[name]["operator"] for name in graph}
    edges = {(kinds[a], kinds[b]) for a, b in graph.edges}
    assert sorted(kinds.values()) == sorted(
        ["Gather", "Gather", "Add", "Mul", "LayerNormalization", "MatMul", "MatMul", "Add", "Tanh", "MatMul"]
    )
    assert ("Add", "Tanh") in edges  # over two Reshapes
    assert ("Gather", "Gather") not in edges
    assert len(graph.edges) == 10


def test_parameters_are_the_values_of_floating_tensors_each_once(language_model):
    assert language_model.parameters == sum(int(np.prod(shape)) for shape in SHAPES.values())


def test_the_digest_follows_the_content_and_not_the_place(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    models = [_model(LANGUAGE_MODEL, SHAPES), _model(LANGUAGE_MODEL, SHAPES), _model(LANGUAGE_MODEL, SHAPES, seed=1)]
    digests = [_load(folder, model).digest for folder, model in zip(folders, models, strict=True)]
    assert digests[0] == digests[1] != digests[2]


def test_external_data_are_read_and_belong_to_the_digest(tmp_path):
    inside = _load(tmp_path, _model(LANGUAGE_MODEL, SHAPES), "inside.onnx")
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    outside = _load(tmp_path, _model(LANGUAGE_MODEL, SHAPES), "outside.onnx", **options)
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    torch.testing.assert_close(inside.program.predict(batch), outside.program.predict(batch), rtol=0, atol=0)
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "weights.bin").write_bytes(bytes(data))
    assert load_onnx(tmp_path / "outside.onnx").digest != outside.digest


def test_missing_or_short_external_data_are_named_at_once(tmp_path):
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    _load(tmp_path, _model(LANGUAGE_MODEL, SHAPES), **options)
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[:-9])
    with pytest.raises(ModelError, match="truncated"):
        load_onnx(tmp_path / "model.onnx")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin' is missing"):
        load_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "inner/../../secret.bin", "C:\\secret.bin", ""])
def test_external_data_outside_the_folder_are_refused(tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(bytes(10000))
    folder = tmp_path / "models"
    folder.mkdir()
    model = _model(LANGUAGE_MODEL, SHAPES)
    external_data_helper.set_external_data(model.graph.initializer[0], location or "x", offset=0, length=264)
    if not location:
        model.graph.initializer[0].external_data[0].value = ""
    model.graph.initializer[0].ClearField("raw_data")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        load_onnx(folder / "model.onnx")


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(264))
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "data.bin").symlink_to(tmp_path / "secret.bin")
    model = _model(LANGUAGE_MODEL, SHAPES)
    external_data_helper.set_external_data(model.graph.initializer[0], "data.bin", offset=0, length=264)
    model.graph.initializer[0].ClearField("raw_data")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        load_onnx(folder / "model.onnx")


def test_a_file_cut_anywhere_or_of_something_else_is_refused_within_a_second(tmp_path):
    whole = _model(LANGUAGE_MODEL, SHAPES).SerializeToString()
    path = tmp_path / "cut.onnx"
    for content in (b"", b"not a model at all\n" * 50, *(whole[:cut] for cut in range(1, len(whole) - 1, 97))):
        path.write_bytes(content)
        start = time.perf_counter()
        with pytest.raises(ModelError, match=r"cut\.onnx"):
            load_onnx(path)
        assert time.perf_counter() - start < 1
    with pytest.raises(ModelError, match="no such file"):
        load_onnx(tmp_path / "absent.onnx")


def test_a_tensor_whose_bytes_do_not_fit_its_shape_is_named(tmp_path):
    model = _model(LANGUAGE_MODEL, SHAPES)
    model.graph.initializer[3].raw_data = model.graph.initializer[3].raw_data[:-4]
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="'query' holds 140 bytes, expected 144"):
        load_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize("opset", [9, 99])
def test_an_operator_set_that_is_too_old_or_too_new_is_refused(tmp_path, opset):
    model = _model(LANGUAGE_MODEL, SHAPES)
    model.opset_import[0].version = opset
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=f"opset {opset}, expected 11 to 25"):
        load_onnx(tmp_path / "model.onnx")


CLASSIFIER = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[n, 5] x) => (float[n, 3] RESULT)
{
    a = Gemm <transB = 1> (x, first, bias)
    b = Relu (a)
    c = MatMul (b, second)
    RESULT = Softmax <axis = 1> (c)
}
"""
CLASSIFIER_SHAPES = {"first": (4, 5), "bias": (4,), "second": (4, 3)}


def test_a_classifier_that_ends_in_a_softmax_gives_the_logarithm_of_its_probabilities(tmp_path):
    model = _load(tmp_path, _model(CLASSIFIER.replace("RESULT", "probabilities"), CLASSIFIER_SHAPES))
    assert model.objective is Objective.CLASSIFIER
    assert model.graph.head == "second"
    assert model.output == OutputSpec(name="probabilities", probabilities=True)
    assert any("logarithm" in notice for notice in model.notices)
    x = torch.randn(7, 5)
    output = model.program.predict({"x": x})
    torch.testing.assert_close(output.exp().sum(-1), torch.ones(7))
    first, bias, second = (numpy_helper.to_array(t) for t in _model(CLASSIFIER, CLASSIFIER_SHAPES).graph.initializer)
    logits = torch.relu(x @ torch.tensor(first).t() + torch.tensor(bias)) @ torch.tensor(second)
    torch.testing.assert_close(output, logits.log_softmax(-1))


@pytest.mark.parametrize(
    ("output", "end", "objective"),
    [
        ("sentence_embedding", "RESULT = Identity (c)", Objective.VALUES),
        ("y", "RESULT = Identity (c)", Objective.CLASSIFIER),
        ("y", "RESULT = Sigmoid (c)", Objective.VALUES),
        ("logits", "RESULT = Sin (c)", Objective.CLASSIFIER),
    ],
)
def test_two_axes_are_classes_if_name_or_structure_say_so(tmp_path, output, end, objective):
    text = CLASSIFIER.replace("RESULT = Softmax <axis = 1> (c)", end).replace("RESULT", output)
    model = _load(tmp_path, _model(text, CLASSIFIER_SHAPES))
    assert model.objective is objective
    assert (model.graph.head is None) == (objective is Objective.VALUES or end.endswith("Sin (c)"))


def test_the_loss_is_about_the_logits_where_there_are_several_outputs(tmp_path):
    text = CLASSIFIER.replace("=> (float[n, 3] RESULT)", "=> (float[n, 4] hidden, int64[n] best, float[n, 3] logits)")
    text = text.replace(
        "RESULT = Softmax <axis = 1> (c)", "logits = Neg (c)\n best = ArgMax <axis = 1, keepdims = 0> (c)"
    )
    text = text.replace("b = Relu (a)", "b = Relu (a)\n hidden = MatMul (b, aside)")
    model = _load(tmp_path, _model(text, CLASSIFIER_SHAPES | {"aside": (4, 4)}))
    assert model.program.predict({"x": torch.zeros(1, 5)}).shape == (1, 3)
    assert [site.name for site in model.graph.sites] == ["first", "second"]
    assert any("'logits'" in notice and "hidden" in notice for notice in model.notices)
    assert any("'aside'" in notice for notice in model.notices)


def test_weights_in_constant_nodes_are_sites_named_after_their_output(tmp_path):
    model = _model(CLASSIFIER.replace("RESULT", "y"), CLASSIFIER_SHAPES)
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    for tensor in tensors:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    loaded = _load(tmp_path, model)
    assert [site.name for site in loaded.graph.sites] == ["first", "second"]
    assert loaded.parameters == 4 * 5 + 4 + 4 * 3


def test_local_functions_are_inlined_and_their_weights_found(tmp_path):
    text = """
    <ir_version: 8, opset_import: ["" : 18, "local" : 1]>
    net (float[n, 5] x) => (float[n, 3] logits) { logits = local.dense (x, weight) }
    <domain: "local", opset_import: ["" : 18]>
    dense (a, b) => (c) { d = MatMul (a, b) c = Relu (d) }
    """
    model = _load(tmp_path, _model(text, {"weight": (5, 3)}))
    assert isinstance(model.program, TorchProgram)
    assert [site.name for site in model.graph.sites] == ["weight"]
    assert not model.notices


def test_a_model_without_floating_output_is_refused(tmp_path):
    text = CLASSIFIER.replace("float[n, 3] RESULT", "int64[n] best").replace("RESULT = Softmax", "best = ArgMax")
    with pytest.raises(ModelError, match="no output"):
        _load(tmp_path, _model(text, CLASSIFIER_SHAPES))


def test_an_exported_network_gives_what_torch_gives_and_the_same_gradients(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 6, 3, groups=3), nn.GELU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 5),
    ).eval()  # fmt: skip
    images = torch.randn(2, 3, 16, 16)
    axes = {"images": {0: "n"}, "logits": {0: "n"}}
    path = tmp_path / "cnn.onnx"
    torch.onnx.export(
        network, (images,), path, dynamo=False, input_names=["images"], output_names=["logits"], dynamic_axes=axes
    )
    model = load_onnx(path)
    assert isinstance(model.program, TorchProgram)
    assert model.objective is Objective.CLASSIFIER
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(model.program.predict({"images": images}), network(images), rtol=1e-5, atol=1e-5)
    head = model.program.parameter("7.weight").detach().clone().requires_grad_()
    aliases = model.program.aliases
    output = torch.func.functional_call(
        model.program.module, {aliases["7.weight"]: head}, args=(), kwargs={"images": images}
    )
    output.square().sum().backward()
    network(images).square().sum().backward()
    torch.testing.assert_close(head.grad, network[7].weight.grad, rtol=1e-4, atol=1e-5)
