"""Inputs rounded to int8: kernels, plain torch, compiled code, folders, and the forecast say the same."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from native_library import compiled
from nested_weights import random_nested
from packed_folders import emit_random, load_kind
from random_weights import random_weight
from torch import nn
from transformers import AutoModelForCausalLM

import guidedq
from guidedq.artifacts.packed_weight import pack_weight
from guidedq.backends.packed_torch.backend import PackedTorchBackend
from guidedq.backends.packed_torch.integers import check_gain, round_inputs
from guidedq.backends.packed_torch.modules import PackedLinear, PackedWeight
from guidedq.backends.packed_torch.native.calls import MOST_INPUTS, multiply_rows
from guidedq.errors import ArtifactError, BackendError, RecipeError
from guidedq.ir.activation_rounding import round_activations
from guidedq.quant.formats import AffineFormat, EntropyFormat, Format
from guidedq.quant.nested import NestedFormat
from guidedq.registry import parse_stage

BACKEND = PackedTorchBackend(activations="int8")
FIXED = tuple(AffineFormat(bits=bits, group_size=64) for bits in (2, 3, 4))


def packed(format: Format, columns: int, rows: int = 20, seed: int = 0) -> PackedWeight:
    weight = random_weight("w", (rows, columns), (format,), seed, scale=0.1)
    return PackedWeight(pack_weight(weight), "w", (rows, columns), transposed=False)


def inputs_of(count: int, columns: int) -> torch.Tensor:
    """Some large, a block of zeros, and signs all alike in another."""
    values = torch.randn(count, columns, generator=torch.Generator().manual_seed(count))
    values[:, ::17] *= 30
    values[0, :64] = 0
    values[-1] = values[-1].abs()
    return values


@pytest.mark.parametrize("columns", [31, 64, 203, 384])
@pytest.mark.parametrize("group_size", [0, 32, 64, 128])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_instruction_set_multiplies_what_the_reference_rounds(bits, group_size, columns):
    for symmetric, outliers in ((False, 0), (True, 2)):
        weight = packed(AffineFormat(bits=bits, group_size=group_size, symmetric=symmetric, outliers=outliers), columns)
        matrix = weight.matrix().double()
        for count in (1, 3, MOST_INPUTS):
            inputs = inputs_of(count, columns)
            expected = round_activations(inputs, 64).double() @ matrix.t()
            sizes = round_activations(inputs, 64).double().abs() @ (matrix.abs() + weight.matrix().abs().amax()).t()
            for number in range(len(compiled().instruction_sets)):
                given = (compiled(), weight.description, weight.blob, weight.listed, inputs)
                found = multiply_rows(*given, integers=True, instruction_set=number)
                assert bool(((found - expected).abs() <= 1e-5 * sizes + 1e-30).all())


def test_numbers_that_are_not_finite_stay_so():
    weight, inputs = packed(FIXED[2], 200), torch.ones(3, 200)
    inputs[0, 70], inputs[1, 199] = torch.nan, torch.inf
    for number in range(len(compiled().instruction_sets)):
        given = (compiled(), weight.description, weight.blob, weight.listed, inputs)
        found = multiply_rows(*given, integers=True, instruction_set=number)
        assert found[:2].isnan().all()
        assert found[2].isfinite().all()


def test_a_layer_says_the_same_with_kernels_without_compiled_and_for_many_inputs(monkeypatch):
    layer = PackedLinear(packed(FIXED[1], 200), torch.ones(20))
    plain = layer(inputs_of(2, 200))
    round_inputs(nn.Sequential(layer))
    for count in (2, 40):
        inputs = inputs_of(count, 200)
        expected = nn.functional.linear(round_activations(inputs, 64), layer.weight, torch.ones(20))
        torch.testing.assert_close(layer(inputs), expected, rtol=1e-4, atol=1e-4)
        with monkeypatch.context() as patched:
            patched.setattr(jaxtyping.config, "jaxtyping_disable", True)
            traced = torch.compile(layer, backend="eager", fullgraph=True)(inputs)
        torch.testing.assert_close(traced, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, layer(inputs_of(2, 200)), rtol=1e-4, atol=1e-4)
    narrow = inputs_of(2, 200).bfloat16()
    expected = nn.functional.linear(round_activations(narrow.float(), 64), layer.weight, torch.ones(20))
    torch.testing.assert_close(layer.to(torch.bfloat16)(narrow).float(), expected, rtol=1e-2, atol=1e-2)


@pytest.fixture(scope="module")
def emitted(tmp_path_factory):
    """A tied llama in fixed widths, its weights, and where it lies."""
    model = load_kind("tied_llama", tmp_path_factory.mktemp("original"))
    folder = tmp_path_factory.mktemp("packed")
    _, weights, _ = emit_random(model, folder, 0, candidates=FIXED)
    return model, weights, folder


def test_a_folder_loaded_so_says_what_probes_and_the_forecast_were_told(emitted):
    model, weights, folder = emitted
    rounding = BACKEND.own_rounding(model, FIXED)
    assert rounding is not None
    inputs = torch.arange(3, 15)[None]
    values = {name: model.graph.site(name).stored(weight.dequantize()) for name, weight in weights.items()}
    expected = model.program.predict({"input_ids": inputs}, weights=values, activations=rounding)
    in_float = model.program.predict({"input_ids": inputs}, weights=values, activations=None)
    loaded = guidedq.load_quantized(folder, activations="int8")
    torch.testing.assert_close(loaded(inputs).logits, expected, rtol=1e-3, atol=1e-3)
    opened = parse_stage("torch{activations=int8}", "backend").open(model, folder)
    torch.testing.assert_close(opened({"input_ids": inputs}), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(expected, in_float, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(guidedq.load_quantized(folder)(inputs).logits, in_float, rtol=1e-3, atol=1e-3)


def test_a_folder_written_for_int8_is_read_so_everywhere_and_saved_so(emitted, tmp_path):
    model, weights, folder = emitted
    (tmp_path / "int8").mkdir()
    BACKEND.emit(model, weights.values(), tmp_path / "int8")
    inputs = torch.arange(3, 15)[None]
    expected = guidedq.load_quantized(folder, activations="int8")(inputs).logits
    loaded = guidedq.load_quantized(tmp_path / "int8")
    torch.testing.assert_close(loaded(inputs).logits, expected)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again(inputs).logits, expected)
    config = tmp_path / "again" / "config.json"
    config.write_text(config.read_text().replace('"int8"', '"int2"'))
    with pytest.raises(ArtifactError, match="int2"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "again")


def test_what_cannot_be_multiplied_in_integers_is_refused(emitted, tmp_path):
    model, _, folder = emitted
    with pytest.raises(RecipeError, match="int8"):
        guidedq.load_quantized(folder, activations="int4")
    for format in (EntropyFormat(bits=3.0), AffineFormat(bits=8, group_size=64), AffineFormat(bits=4, group_size=32)):
        with pytest.raises(ArtifactError, match="Compile anew with --activations int8"):
            check_gain(nn.Sequential(PackedLinear(packed(format, 64), None)))
    nested = [random_nested((site.rows, site.columns), name=site.name) for site in model.graph.quantizable]
    PackedTorchBackend().emit(model, nested, tmp_path)
    with pytest.raises(ArtifactError, match="Compile anew with --activations int8"):
        guidedq.load_quantized(tmp_path, activations="int8")
    with pytest.raises(BackendError, match="nested weights are multiplied in float"):
        BACKEND.nested_footprint(model, NestedFormat(widths=(3, 4), precision=4))
    with pytest.raises(BackendError, match="fixed widths"):
        BACKEND.entropy_code(model, asked=True)
    assert BACKEND.entropy_code(model, asked=False) is None
