"""Nested weights in memory: kernels, plain torch, precision by position, and folders."""

from __future__ import annotations

import json

import pytest
import torch
from native_library import compiled
from nested_weights import nested_of, random_nested
from packed_folders import load_kind

import guidedq
from guidedq.artifacts.packed_weight import pack_weight, unpack_weight
from guidedq.backends.packed_torch import planes as planes_module
from guidedq.backends.packed_torch.backend import PackedTorchBackend
from guidedq.backends.packed_torch.native.planes import dequantize_planes, multiply_planes
from guidedq.backends.packed_torch.planes import PlaneWeight
from guidedq.errors import ArtifactError, BackendError
from guidedq.ir.model import Model
from guidedq.quant.nested import NestedFormat
from guidedq.registry import parse_stage

SHAPES = [((17, 40), (2, 3), 0), ((33, 100), (3, 4, 5), 64), ((16, 64), (3, 8), 32), ((5, 172), (4, 5, 6, 7), 64)]
FORMAT = NestedFormat(widths=(3, 4, 5), precision=5)


def held(weight) -> PlaneWeight:
    return PlaneWeight(weight, weight.shape, transposed=False)


@pytest.mark.parametrize(("shape", "widths", "group_size"), SHAPES)
def test_every_instruction_set_gives_the_reference_bit_for_bit_and_its_products(shape, widths, group_size):
    weight = random_nested(shape, widths, group_size)
    packed, library = held(weight), compiled()
    inputs = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(0))
    for width in widths:
        expected, described = nested_of(weight).at(width).dequantize(), packed._described(width)
        for number in range(len(library.instruction_sets)):
            found = dequantize_planes(library, described, range(shape[0]), instruction_set=number)
            products = multiply_planes(library, described, inputs, instruction_set=number)
            assert torch.equal(found, expected)
            torch.testing.assert_close(products, inputs @ expected.t(), rtol=1e-5, atol=2e-5)


def test_planes_that_are_not_read_do_not_matter():
    weight = random_nested((20, 64))
    packed = held(weight)
    packed.read_at(3)
    inputs = torch.randn(1, 64)
    before, matrix = packed.multiply(inputs), packed()
    packed.planes[3:] = 0x55555555
    assert torch.equal(packed.multiply(inputs), before)
    assert torch.equal(packed(), matrix)


def test_plain_torch_gives_the_same_without_kernels(monkeypatch):
    weight = random_nested((20, 70))
    packed, index = held(weight), torch.tensor([[3, 19], [0, 3]])
    with_kernels = packed.matrix(4), packed.rows(index)
    monkeypatch.setattr(planes_module, "library", lambda: None)
    assert torch.equal(packed.matrix(4), with_kernels[0])
    assert torch.equal(packed.rows(index), with_kernels[1])


def test_each_position_is_read_at_its_own_precision():
    weight = random_nested((20, 70))
    packed, bits = held(weight), torch.tensor([[3, 5, 4], [4, 4, 3]])
    inputs, index = torch.randn(2, 3, 70), torch.randint(0, 20, (2, 3))
    packed.read_at(bits)
    outputs, rows = packed.multiply(inputs), packed.rows(index)
    for place in [(a, b) for a in range(2) for b in range(3)]:
        expected = nested_of(weight).at(int(bits[place])).dequantize()
        torch.testing.assert_close(outputs[place], expected @ inputs[place], rtol=1e-5, atol=2e-5)
        assert torch.equal(rows[place], expected[index[place]])
    with pytest.raises(ArtifactError, match="positions"):
        packed.multiply(torch.randn(4, 70))
    with pytest.raises(ArtifactError, match="Set one for all"):
        packed()


def test_what_is_held_is_what_was_stored():
    weight = random_nested((20, 70))
    assert torch.equal(held(weight).stored(), pack_weight(weight))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return load_kind("tied_llama", tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A folder of random nested weights."""
    path = tmp_path_factory.mktemp("nested")
    weights = [random_nested((site.rows, site.columns), name=site.name) for site in model.graph.quantizable]
    emission = PackedTorchBackend().emit(model, weights, path)
    footprint = PackedTorchBackend().nested_footprint(model, FORMAT)
    counted = sum(footprint.sites[site.name].bytes({0: site.rows}) for site in model.graph.quantizable)
    assert emission.bytes == footprint.base_bytes + counted
    return path


def test_a_folder_is_read_at_each_precision_and_says_which_it_has(model, folder):
    loaded, inputs = guidedq.load_quantized(folder), torch.arange(3, 15)[None]
    assert guidedq.precisions(loaded) == (3, 4, 5)
    weights = {site.name: random_nested((site.rows, site.columns)) for site in model.graph.quantizable}
    for width in (5, 3, 4):
        guidedq.set_precision(loaded, width)
        values = {
            site.name: site.stored(nested_of(weights[site.name]).at(width).dequantize())
            for site in model.graph.quantizable
        }
        expected = model.program.predict({"input_ids": inputs}, weights=values, activations=None)
        torch.testing.assert_close(loaded(inputs).logits, expected, rtol=1e-3, atol=1e-3)
    with guidedq.at_precision(loaded, 3):
        narrow = loaded(inputs).logits
    assert not torch.equal(loaded(inputs).logits, narrow)  # the widest again
    with pytest.raises(ArtifactError, match=r"no precision of 6 bits\. It has 3, 4, 5"):
        guidedq.set_precision(loaded, 6)


def test_a_nested_model_saves_loads_and_refuses_what_has_no_planes(folder, model, tmp_path):
    loaded, inputs = guidedq.load_quantized(folder), torch.arange(3, 15)[None]
    guidedq.set_precision(loaded, 4)
    expected = loaded(inputs).logits
    loaded.save_pretrained(tmp_path / "saved")
    again = type(loaded).from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    guidedq.set_precision(again, 4)
    assert torch.equal(again(inputs).logits, expected)
    with pytest.raises(ArtifactError, match="one precision"):
        guidedq.set_precision(torch.nn.Linear(2, 2), 4)


def test_truncated_and_altered_planes_are_refused(folder, tmp_path):
    import shutil

    for damage in ("truncated", "altered"):
        copy = shutil.copytree(folder, tmp_path / damage)
        content = bytearray((copy / "model.safetensors").read_bytes())
        if damage == "truncated":
            del content[-5:]
        else:
            content[-5] ^= 1
        (copy / "model.safetensors").write_bytes(content)
        with pytest.raises(ArtifactError, match=r"bytes|altered"):
            guidedq.load_quantized(copy)


def test_shapes_that_disagree_with_the_model_are_refused(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "shapes")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["sites"][0]["shape"][0] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="the model has"):
        guidedq.load_quantized(copy)
    blob = pack_weight(random_nested((8, 64)))
    with pytest.raises(ArtifactError, match="damaged"):
        unpack_weight(blob, "w", (8, 96))


def test_the_onnx_backend_says_that_it_writes_no_nested_weights(model):
    with pytest.raises(BackendError, match="--backend torch"):
        parse_stage("onnx", "backend").nested_footprint(model, FORMAT)
