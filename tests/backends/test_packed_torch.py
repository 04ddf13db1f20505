"""The torch backend from a model to a folder and back, on one tiny model of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from packed_folders import CANDIDATES, CODED, KINDS, emit_random, load_kind
from safetensors.torch import load_file
from tiny_models import tiny_language_model
from torch import nn

from guidedq.backends.packed_torch.backend import PackedTorchBackend
from guidedq.backends.packed_torch.modules import PackedEmbedding, PackedLinear
from guidedq.errors import BackendError
from guidedq.ir.lifting import trial_batch
from guidedq.quant.formats import AffineFormat

BACKEND = PackedTorchBackend()
SAME_ARITHMETIC = 1e-5
"""Relative to the largest: Conv1D multiplies by the transpose, so its sums may run in another order."""


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def loaded_kinds() -> dict[str, Any]:
    """Models by kind: a fixture cached by its parameter would be cached by the parameter's place in its own list."""
    return {}


@pytest.fixture
def model(kind, loaded_kinds, tmp_path_factory) -> Any:
    if kind not in loaded_kinds:
        loaded_kinds[kind] = load_kind(kind, tmp_path_factory.mktemp(kind))
    return loaded_kinds[kind]


@pytest.mark.parametrize("seed", range(4))
def test_the_file_is_as_large_as_the_footprint_says_to_the_byte(model, tmp_path, seed):
    emission, _, predicted_bytes = emit_random(model, tmp_path, seed)
    assert emission.weights_file.stat().st_size == emission.bytes == predicted_bytes


@pytest.mark.parametrize("candidates", [CANDIDATES, CODED], ids=["fixed", "coded"])
def test_every_module_of_a_site_gives_the_reference_weight_bit_for_bit(model, tmp_path, candidates):
    _, weights, _ = emit_random(model, tmp_path, 5, candidates=candidates)
    assert any(weight.has_entropy for weight in weights.values()) == (candidates is CODED)
    loaded = BACKEND.load(tmp_path)
    for site in model.graph.quantizable:
        reference = site.stored(weights[site.name].dequantize())
        for use in site.uses:
            assert torch.equal(loaded.get_submodule(use.operator).weight, reference)


def test_the_opened_artifact_computes_what_the_model_does_with_the_dequantized_weights(model, tmp_path):
    _, weights, _ = emit_random(model, tmp_path, 6)
    batch = trial_batch(model.inputs)
    references = {site.name: site.stored(weights[site.name].dequantize()) for site in model.graph.quantizable}
    expected = model.program.predict(batch, weights=references)
    found = BACKEND.open(model, tmp_path)(batch)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=SAME_ARITHMETIC * float(expected.abs().max()))
    assert not torch.allclose(expected, model.program.predict(batch), atol=1e-3 * float(expected.abs().max()))


def test_the_weights_file_is_plain_safetensors_with_every_tensor_once(model, tmp_path):
    emission, _, _ = emit_random(model, tmp_path, 7)
    stored = load_file(emission.weights_file)
    sites = {site.name for site in model.graph.quantizable}
    assert {name for name, values in stored.items() if values.dtype is torch.uint8} == sites
    parameters = {name for name, _ in model.program.module.named_parameters()}
    persistent = set(model.program.module.state_dict()) - {
        name for name, _ in model.program.module.named_parameters(remove_duplicate=False)
    }
    assert set(stored) == parameters | persistent
    state = model.program.module.state_dict()
    for name in set(stored) - sites:
        assert torch.equal(stored[name].to(state[name].dtype), state[name])  # the source was saved in fp16
        assert not stored[name].is_floating_point() or stored[name].dtype is torch.float16


def test_the_same_inputs_give_the_same_bytes(model, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        emit_random(model, tmp_path / name, 8)
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "second").iterdir())
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_the_packed_modules_stand_where_the_originals_stood(model, kind, tmp_path):
    emit_random(model, tmp_path, 9)
    loaded = BACKEND.load(tmp_path)
    kinds = {type(loaded.get_submodule(use.operator)) for site in model.graph.quantizable for use in site.uses}
    if kind == "resnet":
        assert {leaf.__name__ for leaf in kinds} == {"PackedConv2d", "PackedLinear"}
        assert any(issubclass(leaf, nn.Conv2d) for leaf in kinds)
    else:
        assert kinds == {PackedLinear, PackedEmbedding}
    blobs = [name for name in loaded.state_dict() if name.endswith(".blob")]
    assert len(blobs) == sum(len(site.uses) for site in model.graph.quantizable)
    assert not any(values.requires_grad for values in loaded.parameters())
    assert not loaded.training


@pytest.mark.parametrize("kind", ["llama", "tied_llama", "gpt2"])
def test_a_loaded_language_model_generates_what_the_dequantized_one_does(model, tmp_path):
    _, weights, _ = emit_random(model, tmp_path, 10, scale=0.2)
    loaded = BACKEND.load(tmp_path)
    twin = type(loaded)(loaded.config).eval()
    twin.load_state_dict({name: values.clone() for name, values in model.program.module.state_dict().items()})
    for site in model.graph.quantizable:
        twin.get_parameter(site.name).data.copy_(site.stored(weights[site.name].dequantize()))
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    prompt = torch.tensor([[1, 5, 7]])
    assert torch.equal(loaded.generate(prompt, **options), twin.generate(prompt, **options))


@pytest.mark.parametrize("kind", ["tied_llama"])
def test_tied_modules_share_one_blob_in_memory_and_on_disk(model, tmp_path):
    emission, _, _ = emit_random(model, tmp_path, 11)
    loaded = BACKEND.load(tmp_path)
    assert loaded.lm_head.packed is loaded.model.embed_tokens.packed
    assert "lm_head.weight" not in load_file(emission.weights_file)


@pytest.mark.parametrize("kind", ["llama"])
def test_a_loaded_model_follows_a_change_of_dtype(model, tmp_path):
    emit_random(model, tmp_path, 12)
    batch = trial_batch(model.inputs)
    whole = BACKEND.load(tmp_path)(**batch).logits
    half = BACKEND.load(tmp_path).bfloat16()(**batch).logits
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half.float(), whole, rtol=0, atol=0.05 * float(whole.abs().max()))


@pytest.mark.parametrize("kind", ["llama"])
def test_kept_sites_stay_as_plain_tensors_and_count_in_the_base(model, tmp_path):
    kept = model.with_graph(model.graph.with_kept(frozenset({"lm_head.weight"})))
    emission, _, predicted_bytes = emit_random(kept, tmp_path, 13)
    assert emission.bytes == predicted_bytes
    assert type(BACKEND.load(tmp_path).lm_head) is nn.Linear
    grown = BACKEND.footprint(kept, ()).base_bytes - BACKEND.footprint(model, ()).base_bytes
    site = model.graph.site("lm_head.weight")
    assert abs(grown - 2 * site.parameters) < 64  # the header's entry changes too


@pytest.mark.parametrize("kind", ["llama"])
def test_weights_that_are_not_the_models_are_refused(model, tmp_path):
    _, weights, _ = emit_random(model, tmp_path, 14)
    (first, *others) = weights.values()
    for wrong, message in (
        (others, f"no quantized weight came for {first.name}"),
        ([first, first, *others], "came twice"),
        ([*others, others[0]], "came twice"),
    ):
        with pytest.raises(BackendError, match=message):
            BACKEND.emit(model, wrong, tmp_path)


def test_other_sources_are_sent_to_the_onnx_backend():
    from dataclasses import replace

    for source in ("onnx", "torch_export"):
        other = replace(tiny_language_model(), source=source)
        with pytest.raises(BackendError, match="--backend onnx"):
            BACKEND.footprint(other, [AffineFormat(bits=4)])
        with pytest.raises(BackendError, match="--backend onnx"):
            BACKEND.emit(other, [], Path())


@pytest.mark.parametrize("kind", ["llama"])
def test_sites_fuse_only_when_asked(model):
    assert BACKEND.fuses(model.graph) == ()
    assert PackedTorchBackend(fused=True).fuses(model.graph) == model.graph.shared_inputs
    assert any(len(group) == 3 for group in model.graph.shared_inputs)  # q, k and v
    assert BACKEND.own_rounding(model, []) is None
    assert BACKEND.entropy_code(model, asked=False) == "huffman"
