"""Hugging Face folders of every kind lift to the same output, under the model's own names."""

import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from guidedq.errors import ModelError
from guidedq.frontend import load
from guidedq.ir.graph import Storage, UseKind
from guidedq.ir.lifting import trial_batch
from guidedq.ir.model import Objective
from guidedq.ir.program import AbstractWriter

SIZE = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
WHISPER = {
    "vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_source_positions": 30,
    "max_target_positions": 20, "num_mel_bins": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip
MODELS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZE, num_key_value_heads=1, tie_word_embeddings=True)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    ),
    "gemma": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**SIZE, num_key_value_heads=1, head_dim=8)),
    "bert": lambda: hf.BertModel(hf.BertConfig(**SIZE)),
    "bert classifier": lambda: hf.BertForSequenceClassification(hf.BertConfig(**SIZE, num_labels=3)),
    "vit": lambda: hf.ViTForImageClassification(
        hf.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32,
            patch_size=8, num_labels=4,
        )
    ),
    "resnet": lambda: hf.ResNetForImageClassification(
        hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4)
    ),
    "convnext": lambda: hf.ConvNextForImageClassification(
        hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=4, image_size=32)
    ),
    "whisper": lambda: hf.WhisperForConditionalGeneration(hf.WhisperConfig(**WHISPER)),
}  # fmt: skip
OBJECTIVES = {
    "llama": Objective.LANGUAGE_MODEL, "gpt2": Objective.LANGUAGE_MODEL, "gemma": Objective.LANGUAGE_MODEL,
    "bert": Objective.VALUES, "bert classifier": Objective.CLASSIFIER, "vit": Objective.CLASSIFIER,
    "resnet": Objective.CLASSIFIER, "convnext": Objective.CLASSIFIER, "whisper": Objective.LANGUAGE_MODEL,
}  # fmt: skip


def saved(name, folder):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_output_and_facts_are_those_of_transformers(name, tmp_path):
    original = saved(name, tmp_path)
    model = load(tmp_path)
    batch = trial_batch(model.inputs)
    with torch.no_grad():
        expected = original(**batch)
    expected = expected.logits if "logits" in expected else expected.last_hidden_state
    torch.testing.assert_close(model.program.predict(batch), expected, rtol=1e-5, atol=1e-6)
    assert model.objective is OBJECTIVES[name]
    assert model.parameters == sum(parameter.numel() for parameter in original.parameters())
    assert not any(parameter.requires_grad for parameter in model.program.module.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_every_site_is_a_parameter_of_the_model_and_reaches_its_output(name, tmp_path):
    original = dict(saved(name, tmp_path).named_parameters())
    model = load(tmp_path)
    batch = trial_batch(model.inputs)
    output = model.program.predict(batch)
    for site in model.graph.sites:
        weight = model.program.parameter(site.name)
        assert torch.equal(weight, original[site.name])
        changed = model.program.predict(batch, weights={site.name: torch.randn_like(weight)})
        assert not torch.equal(changed, output), site.name
    assert torch.equal(model.program.predict(batch), output)


@pytest.mark.parametrize("name", MODELS)
def test_operators_read_what_their_weight_needs(name, tmp_path):
    saved(name, tmp_path)
    model = load(tmp_path)
    kinds = {use.operator: (site, use.kind) for site in model.graph.sites for use in site.uses}
    seen = model.program.observe(trial_batch(model.inputs), dict.fromkeys(kinds))
    for operator, values in seen.items():
        site, kind = kinds[operator]
        if kind is UseKind.LINEAR:
            assert values.shape[-1] == site.columns
        elif kind is UseKind.EMBEDDING:
            assert values.dtype == torch.int64
            assert int(values.max()) < site.rows
        else:
            assert values.shape[1] == site.shape[1] * site.input_groups


def test_tied_head_is_one_site_with_two_uses_and_is_the_head(tmp_path):
    saved("llama", tmp_path)
    graph = load(tmp_path).graph
    site = graph.sites[0]
    assert site.name == graph.head == "model.embed_tokens.weight"
    assert [use.kind for use in site.uses] == [UseKind.EMBEDDING, UseKind.LINEAR]
    assert graph.tied == (site,)


def test_shared_inputs_are_the_attention_and_the_gated_projections(tmp_path):
    saved("llama", tmp_path)
    first, second = load(tmp_path).graph.shared_inputs[:2]
    assert [name.split(".")[-2] for name in first] == ["q_proj", "k_proj", "v_proj"]
    assert [name.split(".")[-2] for name in second] == ["gate_proj", "up_proj"]


def test_gpt2_weights_are_stored_transposed(tmp_path):
    original = saved("gpt2", tmp_path)
    model = load(tmp_path)
    site = model.graph.site("transformer.h.0.attn.c_attn.weight")
    assert site.storage is Storage.IN_OUT
    assert (site.rows, site.columns) == (48, 16)
    assert torch.equal(model.matrix(site), original.transformer.h[0].attn.c_attn.weight.t())


def test_scaled_embedding_is_seen_at_its_plain_lookup(tmp_path):
    saved("gemma", tmp_path)
    site = load(tmp_path).graph.site("model.embed_tokens.weight")
    assert [use.operator for use in site.uses] == ["model.embed_tokens.lookup", "lm_head"]


def test_weight_that_the_output_does_not_depend_on_is_no_site_and_is_told(tmp_path):
    saved("bert", tmp_path)
    model = load(tmp_path)
    assert "pooler.dense.weight" not in [site.name for site in model.graph.sites]
    assert any("pooler.dense.weight" in notice for notice in model.notices)


def test_depthwise_convolution_has_a_group_for_every_channel(tmp_path):
    saved("convnext", tmp_path)
    site = load(tmp_path).graph.site("convnext.encoder.stages.0.layers.0.dwconv.weight")
    assert (site.input_groups, site.columns) == (8, 49)


def test_writing_with_the_cache_follows_the_same_distribution_as_whole_runs(tmp_path):
    saved("llama", tmp_path)
    program = load(tmp_path).program
    assert isinstance(program.module, AbstractWriter)
    written = program.module.write(torch.tensor([[1], [2]]), 12, torch.Generator().manual_seed(3))
    generator, tokens = torch.Generator().manual_seed(3), torch.tensor([[1], [2]])
    while tokens.shape[1] < 12:
        chances = torch.softmax(program.predict({"input_ids": tokens})[:, -1], -1)
        tokens = torch.cat((tokens, torch.multinomial(chances, 1, generator=generator)), 1)
    assert torch.equal(written, tokens)


def test_half_precision_checkpoint_runs_in_float32(tmp_path):
    saved("llama", tmp_path).half().save_pretrained(tmp_path)
    model = load(tmp_path)
    assert {parameter.dtype for parameter in model.program.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_the_class_are_named(change, tmp_path):
    saved("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del weights[name]
    elif change == "shape":
        weights[name] = torch.zeros(5, 7)
    else:
        name = "model.layers.9.mlp.up_proj.weight"
        weights[name] = torch.zeros(5, 7)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=name):
        load(tmp_path)


def test_class_that_transformers_does_not_have_is_named_and_no_code_is_run(tmp_path):
    saved("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["MyOwnModel"]
    config["auto_map"] = {"AutoModel": "modeling.MyOwnModel"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling.py").write_text("raise SystemExit('the folder\\'s code was run')")
    with pytest.raises(ModelError, match="MyOwnModel"):
        load(tmp_path)
