"""Models that are not ONNX yet: exported small, with their own inputs, and run with any batch and length."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx_models import counted_bytes, quantized
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertForQuestionAnswering

from guidedq.artifacts.footprint import Footprint
from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.backends.onnx.export import export_model, plain_call
from guidedq.errors import BackendError
from guidedq.frontend.hugging_face import load_hugging_face
from guidedq.ir.graph import Graph, Site, Use, UseKind, operator_graph
from guidedq.ir.model import InputSpec, Model, Objective
from guidedq.ir.program import TorchProgram
from guidedq.quant.formats import AffineFormat, Format

VOCABULARY, WIDTH = 50, 48
THREE_BITS = AffineFormat(bits=3, group_size=16)


class Tagger(nn.Module):
    """An embedding tied to the head, and a linear layer with a bias between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, *, tokens: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(self.embedding(tokens))))


def tagger() -> Model:
    torch.manual_seed(0)
    module = Tagger().eval().requires_grad_(False)
    tied = (Use(operator="embedding", kind=UseKind.EMBEDDING), Use(operator="head", kind=UseKind.LINEAR))
    inner = (Use(operator="inner", kind=UseKind.LINEAR),)
    sites = (
        Site(name="embedding.weight", shape=(VOCABULARY, WIDTH), uses=tied),
        Site(name="inner.weight", shape=(WIDTH, WIDTH), uses=inner),
    )
    return Model(
        name="tagger",
        path=Path("nowhere"),
        source="hugging_face",
        digest="tagger",
        graph=Graph(operators=operator_graph([], []), sites=sites),
        program=TorchProgram(module=module),
        objective=Objective.LANGUAGE_MODEL,
        inputs=(InputSpec(name="tokens", dtype=torch.int64, shape=(None, None)),),
        parameters=sum(site.parameters for site in sites),
    )


def written(model: Model, folder: Path) -> tuple[Footprint, list[QuantizedWeight], bytes]:
    """Emit at 3 bits; the footprint, what was emitted, and the bytes."""

    def choose(site: Site) -> list[Format]:
        return [THREE_BITS] * site.rows

    backend = OnnxBackend(accuracy_level=0)
    weights = quantized(model, choose)
    content = backend.emit(model, weights, folder).weights_file.read_bytes()
    return backend.footprint(model, (THREE_BITS,)), weights, content


def agrees(model: Model, weights: list[QuantizedWeight], folder: Path, tokens: Tensor, name: str) -> bool:
    """Whether ONNX Runtime and the program with the dequantized weights give the same output."""
    run = OnnxBackend(accuracy_level=0).open(model, folder)
    values = {weight.name: model.graph.site(weight.name).stored(weight.dequantize()) for weight in weights}
    expected = model.program.predict({name: tokens}, weights=values)
    return torch.allclose(run({name: tokens}), expected, atol=1e-4 * float(expected.abs().max()))


def test_an_exported_module_keeps_its_inputs_and_runs_on_any_batch_and_length(tmp_path: Path) -> None:
    model = tagger()
    footprint, weights, content = written(model, tmp_path)
    for shape in ((1, 1), (2, 7), (5, 3)):
        tokens = torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(1))
        assert agrees(model, weights, tmp_path, tokens, "tokens")
    proto = onnx.load_from_string(content)
    assert [entry.name for entry in proto.graph.input] == ["tokens"]
    assert [entry.name for entry in proto.graph.output] == ["logits"]
    assert b"Traceback" not in content and b"File " not in content and b"test_onnx_export" not in content
    assert 0 <= counted_bytes(footprint, weights) - len(content) < 1500


def tiny_language_model(kind: str, folder: Path) -> Model:
    sizes = {
        "llama": {"hidden_size": 48, "intermediate_size": 172, "num_attention_heads": 4, "num_key_value_heads": 2},
        "gpt2": {"n_embd": 48, "n_head": 4, "n_inner": 172, "n_layer": 2, "n_positions": 64},
    }
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, num_hidden_layers=2, **sizes[kind])
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return load_hugging_face(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_language_models_run_as_the_program_does(kind: str, tmp_path: Path) -> None:
    model = tiny_language_model(kind, tmp_path / "model")
    (tmp_path / "out").mkdir()
    footprint, weights, content = written(model, tmp_path / "out")
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, VOCABULARY, (3, 11)))
    assert agrees(model, weights, tmp_path / "out", tokens, "input_ids")
    assert 0 <= counted_bytes(footprint, weights) - len(content) < 2500
    linear = sum(use.kind is UseKind.LINEAR for site in model.graph.quantizable for use in site.uses)
    loaded = onnx.load_from_string(content)
    products = [node for node in loaded.graph.node if node.op_type in ("Linear", "Matrix")]
    assert len(products) == linear


def test_a_head_with_two_results_has_both_beside_the_main_output(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    original = BertForQuestionAnswering(BertConfig(vocab_size=VOCABULARY, **sizes)).eval()
    original.save_pretrained(tmp_path)
    model = load_hugging_face(tmp_path)
    proto, _ = export_model(model, plain_call(model), 21)
    assert [entry.name for entry in proto.graph.output] == ["output", "start_logits", "end_logits"]
    batch = {spec.name: torch.ones(3, 5, dtype=torch.int64) for spec in model.inputs}
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    both, start, end = session.run(None, {name: values.numpy() for name, values in batch.items()})
    np.testing.assert_array_equal(both, np.stack((start, end), axis=-1))
    np.testing.assert_allclose(both, model.program.predict(batch).numpy(), atol=1e-5)


class Recurrent(nn.Module):
    """Goes from token to token in a loop of Python, which an exporter can only unroll."""

    def forward(self, *, tokens: Tensor) -> Tensor:
        state = torch.zeros(tokens.shape[0], VOCABULARY)
        return torch.stack([state := torch.tanh(state + token[:, None]) for token in tokens.unbind(1)], dim=1)


def test_a_loop_over_the_tokens_is_told_as_what_keeps_a_model_from_being_exported() -> None:
    model = replace(
        tagger(), program=TorchProgram(module=Recurrent()), graph=Graph(operators=operator_graph([], []), sites=())
    )
    with pytest.raises(
        BackendError, match="axis 1 of tokens may have any size, but the model's own code fixes it to 8"
    ):
        export_model(model, plain_call(model), 21)
