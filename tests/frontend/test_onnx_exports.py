"""Transformers as PyTorch's exporters write them: equal to ONNX Runtime, with a gradient for every weight."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
import transformers
from torch import nn

from guidedq.frontend.onnx import load_onnx
from guidedq.ir.graph import UseKind
from guidedq.ir.model import Objective

VOCABULARY = 97
TIGHT = 1e-5
"""Relative difference to ONNX Runtime: both sum in float32, in different orders."""


class _Outputs(nn.Module):
    """Takes tensors, gives one tensor."""

    def __init__(self, model, field):
        super().__init__()
        self.model, self.field = model, field

    def forward(self, input_ids, attention_mask=None):
        inputs = {"input_ids": input_ids} | ({} if attention_mask is None else {"attention_mask": attention_mask})
        return getattr(self.model(**inputs), self.field)


def _llama():
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def _gpt2():
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def _bert():
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    return transformers.BertModel(config, add_pooling_layer=False)


def _check(path, batch):
    """Load, compare with ONNX Runtime, and make sure that a gradient reaches every weight."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    expected = torch.from_numpy(session.run(None, {name: values.numpy() for name, values in batch.items()})[0])
    model = load_onnx(path)
    found = model.program.predict(batch)
    assert float((found - expected).norm() / expected.norm()) < TIGHT
    weights = {site.name: model.program.parameter(site.name).clone().requires_grad_() for site in model.graph.sites}
    paths = {model.program.aliases[name]: weight for name, weight in weights.items()}
    torch.func.functional_call(model.program.module, paths, args=(), kwargs=batch).square().sum().backward()
    assert [name for name, weight in weights.items() if weight.grad is None] == []
    return model


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize(("make", "linear", "positions"), [(_llama, 14, None), (_gpt2, 8, 64)], ids=["llama", "gpt2"])
def test_a_language_model_exported_by_dynamo_is_run_and_understood(tmp_path, make, linear, positions, opset):
    torch.manual_seed(0)
    source = make().eval()
    for parameter in source.parameters():  # those that are all alike would be stored once
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim == 1 else None
    path = tmp_path / "model.onnx"
    sizes = {0: torch.export.Dim("n"), 1: torch.export.Dim("s", max=64)}
    torch.onnx.export(
        _Outputs(source, "logits"), (torch.zeros(2, 11, dtype=torch.int64),), path, dynamo=True, optimize=False,
        opset_version=opset, external_data=False, dynamic_shapes=(sizes,), input_names=["input_ids"],
        output_names=["logits"], verbose=False,
    )  # fmt: skip
    tokens = torch.randint(0, VOCABULARY, (3, 9))
    model = _check(path, {"input_ids": tokens})
    torch.testing.assert_close(
        model.program.predict({"input_ids": tokens}), source(input_ids=tokens).logits, rtol=1e-4, atol=1e-5
    )
    assert model.objective is Objective.LANGUAGE_MODEL
    assert model.vocabulary_size == VOCABULARY
    assert model.context_length == positions
    tied = [site for site in model.graph.sites if len(site.uses) > 1]
    assert [site.name for site in tied] == [model.graph.head]
    assert sum(site.is_linear for site in model.graph.sites) == linear
    assert 0 <= model.parameters - sum(parameter.numel() for parameter in source.parameters()) < 300  # shape constants


@pytest.mark.slow
def test_an_encoder_exported_by_torchscript_is_run_with_padding(tmp_path):
    torch.manual_seed(0)
    source = _bert().eval()
    path = tmp_path / "model.onnx"
    tokens = torch.randint(0, VOCABULARY, (2, 11))
    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "n", 1: "s"} for name in (*names, "last_hidden_state")}
    torch.onnx.export(
        _Outputs(source, "last_hidden_state"), (tokens, torch.ones_like(tokens)), path, dynamo=False, opset_version=17,
        input_names=names, output_names=["last_hidden_state"], dynamic_axes=axes,
    )  # fmt: skip
    tokens = torch.randint(0, VOCABULARY, (3, 7))
    mask = torch.ones_like(tokens)
    mask[1, 4:] = 0
    model = _check(path, dict(zip(names, (tokens, mask), strict=True)))
    assert model.objective is Objective.VALUES
    assert model.graph.head is None
    assert model.vocabulary_size == VOCABULARY
    assert model.context_length == 64
    assert sum(site.uses[0].kind is UseKind.LINEAR for site in model.graph.sites) == 12
    assert sorted(len(group) for group in model.graph.shared_inputs) == [3, 3]
