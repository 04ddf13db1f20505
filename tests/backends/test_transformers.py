"""Artifacts of the torch backend in transformers: `from_pretrained`, `save_pretrained`, and what follows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packed_folders import CODED, emit_demo, emit_random, load_kind
from safetensors.torch import load_file
from tiny_transformers import save_tiny_transformer
from torch.utils._python_dispatch import TorchDispatchMode

import guidedq
from guidedq import announcement
from guidedq.artifacts.manifest import file_entry
from guidedq.backends.packed_torch.backend import PackedTorchBackend
from guidedq.backends.packed_torch.modules import PackedWeight
from guidedq.errors import ArtifactError
from guidedq.ir.lifting import trial_batch

WEIGHTS = "model.safetensors"
CLASSES = {
    "tied_llama": transformers.AutoModelForCausalLM,
    "gpt2": transformers.AutoModelForCausalLM,
    "bert": transformers.AutoModel,
    "masked_bert": transformers.AutoModelForMaskedLM,
    "bert_classifier": transformers.AutoModelForSequenceClassification,
    "mixtral": transformers.AutoModelForCausalLM,
    "gpt_oss": transformers.AutoModelForCausalLM,
    "t5": transformers.AutoModelForSeq2SeqLM,
    "whisper": transformers.AutoModelForSpeechSeq2Seq,
    "resnet": transformers.AutoModelForImageClassification,
}
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Any:
    """Folders by kind, emitted once; with the inputs of the model."""
    made: dict[str, tuple[Path, Any]] = {}

    def artifact(kind: str) -> tuple[Path, Any]:
        if kind not in made:
            model = load_kind(kind, tmp_path_factory.mktemp("source"))
            folder = tmp_path_factory.mktemp(kind)
            emit_random(model, folder, 1, scale=0.2, candidates=CODED)
            made[kind] = folder, trial_batch(model.inputs)
        return made[kind]

    return artifact


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return emit_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture
def copied(artifacts, tmp_path) -> Path:
    return shutil.copytree(artifacts("tied_llama")[0], tmp_path / "artifact")


def main_output(model: Any, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch)[0]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_kind_of_model_loads_as_guidedq_loads_it_and_survives_being_saved(kind, artifacts, tmp_path):
    folder, batch = artifacts(kind)
    expected = main_output(PackedTorchBackend().load(folder), batch)
    loaded, report = CLASSES[kind].from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(main_output(loaded, batch), expected)
    loaded.save_pretrained(tmp_path)
    again = CLASSES[kind].from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(main_output(again, batch), expected)


def test_what_is_saved_holds_the_same_bytes_of_packed_weights(artifacts, tmp_path):
    folder, _ = artifacts("tied_llama")
    model = CLASSES["tied_llama"].from_pretrained(folder)
    model.tie_weights()  # as evaluation harnesses do
    model.save_pretrained(tmp_path)
    before, after = load_file(folder / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert set(before) == set(after)
    for name, values in before.items():
        assert torch.equal(values.to(after[name].dtype), after[name])
    configs = [json.loads((path / "config.json").read_text()) for path in (folder, tmp_path)]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]


def test_the_state_can_be_taken_from_one_model_and_given_to_another(artifacts, tmp_path):
    folder, batch = artifacts("tied_llama")
    first = CLASSES["tied_llama"].from_pretrained(folder)
    other = CLASSES["tied_llama"].from_pretrained(folder)
    other.lm_head.packed.blob.zero_()
    other.load_state_dict({name: values.clone() for name, values in first.state_dict().items()})
    assert torch.equal(main_output(first, batch), main_output(other, batch))


def test_a_model_without_its_head_loads_from_an_artifact_with_one(artifacts, tmp_path):
    folder, batch = artifacts("tied_llama")
    body = transformers.AutoModel.from_pretrained(folder)
    whole = CLASSES["tied_llama"].from_pretrained(folder)
    expected = main_output(whole.model, batch)
    assert torch.equal(main_output(body, batch), expected)
    body.save_pretrained(tmp_path)
    assert torch.equal(main_output(transformers.AutoModel.from_pretrained(tmp_path), batch), expected)
    again = CLASSES["tied_llama"].from_pretrained(
        tmp_path
    )  # its head is tied to the embedding, as the configuration says
    assert torch.equal(main_output(again, batch), main_output(whole, batch))


def test_a_model_that_has_no_parameter_left_knows_its_device_and_generates(artifacts, tmp_path):
    folder, batch = artifacts("olmo")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert all(parameter.numel() == 0 for parameter in model.parameters())
    assert (model.device.type, model.dtype, model.model.dtype) == ("cpu", torch.float32, torch.float32)
    assert model.generate(batch["input_ids"], **GREEDY).shape[1] == batch["input_ids"].shape[1] + 8
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / WEIGHTS).keys() == load_file(folder / WEIGHTS).keys()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(main_output(again, batch), main_output(model, batch))


def test_buffers_that_are_in_no_file_are_made_by_whichever_module_makes_them(artifacts):
    folder, _ = artifacts("falcon_h1")
    fresh = dict(transformers.FalconH1ForCausalLM(_config(folder)).named_buffers())
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    made = dict(model.named_buffers())
    assert any(name.endswith("mup_vector") for name in fresh)
    for name, values in fresh.items():
        assert torch.equal(made[name], values), name


def test_a_class_that_calls_its_parts_otherwise_loads_from_the_artifact(artifacts):
    folder, batch = artifacts("clip_text")
    whole = transformers.CLIPTextModelWithProjection.from_pretrained(folder)
    part = transformers.CLIPTextModel.from_pretrained(folder)
    assert any(isinstance(module, PackedWeight) for module in part.modules())
    with torch.no_grad():
        assert torch.equal(part(**batch).last_hidden_state, whole(**batch).last_hidden_state)


def test_names_of_the_artifacts_own_class_are_not_converted(artifacts):
    folder, _ = artifacts("clip_text")
    quantizer = transformers.CLIPTextModelWithProjection.from_pretrained(folder).hf_quantizer
    assert quantizer.update_weight_conversions(["any"], transformers.CLIPTextModelWithProjection(_config(folder))) == []


def _config(folder: Path) -> Any:
    return transformers.AutoConfig.from_pretrained(folder)


def test_a_tied_embedding_that_was_left_alone_stays_tied(tmp_path):
    model = load_kind("tied_llama", tmp_path / "source")
    kept = model.with_graph(model.graph.with_kept(frozenset({"model.embed_tokens.weight"})))
    (tmp_path / "artifact").mkdir()
    emit_random(kept, tmp_path / "artifact", 2)
    first = CLASSES["tied_llama"].from_pretrained(tmp_path / "artifact")
    first.save_pretrained(tmp_path / "saved")
    again = CLASSES["tied_llama"].from_pretrained(tmp_path / "saved")
    batch = trial_batch(model.inputs)
    assert torch.equal(main_output(first, batch), main_output(again, batch))
    for loaded in (first, again):
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_a_device_map_is_followed(artifacts, device_map):
    pytest.importorskip("accelerate")
    folder, batch = artifacts("tied_llama")
    model = CLASSES["tied_llama"].from_pretrained(folder, device_map=device_map)
    assert torch.equal(main_output(model, batch), main_output(CLASSES["tied_llama"].from_pretrained(folder), batch))


def test_a_pipeline_writes_text(demo):
    written = transformers.pipeline("text-generation", model=str(demo))("import os", **GREEDY)
    model, tokenizer = guidedq.load_quantized(demo), transformers.AutoTokenizer.from_pretrained(demo)
    tokens = model.to(torch.float16).generate(**tokenizer("import os", return_tensors="pt"), **GREEDY)
    assert written[0]["generated_text"] == tokenizer.decode(tokens[0], skip_special_tokens=True)


class LargestFloat(TorchDispatchMode):
    """The largest floating-point tensor in memory that any operator gives while it is active, in bytes."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for result in torch.utils._pytree.tree_leaves(results):
            if isinstance(result, torch.Tensor) and result.is_floating_point() and not result.is_meta:
                self.bytes = max(self.bytes, result.nbytes)
        return results


def test_no_weight_is_ever_in_full_precision_while_a_model_loads(demo, monkeypatch):
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # the mode sees one thread
    with LargestFloat() as seen:
        model = CLASSES["tied_llama"].from_pretrained(demo)
    smallest = min(module.shape[0] * module.shape[1] for module in model.modules() if isinstance(module, PackedWeight))
    assert 0 < seen.bytes < 2 * smallest
    with seen:
        model(torch.tensor([[1, 2, 3]]))
    assert seen.bytes >= 2 * smallest  # it does see weights where they are dequantized


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells what is mapped")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_bytes_stay_in_the_mapped_file_unless_some_are_unpacked(dtype, demo, tmp_path):
    def mapped(folder: Path, tensor: torch.Tensor) -> bool:
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        spans = [
            tuple(int(end, 16) for end in line[0].split("-")) for line in maps if line[-1] == str(folder / WEIGHTS)
        ]
        return any(start <= tensor.data_ptr() < end for start, end in spans)

    (folder := tmp_path / "fixed").mkdir()
    emit_random(load_kind("tied_llama", tmp_path / "source"), folder, 1)
    fixed = CLASSES["tied_llama"].from_pretrained(folder, dtype=dtype)
    held = [module.blob for module in fixed.modules() if isinstance(module, PackedWeight)]
    assert held and all(mapped(folder, blob) for blob in held)
    coded = CLASSES["tied_llama"].from_pretrained(demo, dtype=dtype)
    assert coded.num_parameters() > 0
    assert str(demo / WEIGHTS) not in Path("/proc/self/maps").read_text()


def test_an_exported_classifier_gives_the_same_numbers(artifacts):
    folder, batch = artifacts("bert_classifier")
    model = CLASSES["bert_classifier"].from_pretrained(folder, dtype=torch.float32)
    exported = torch.export.export(model, (), dict(batch))
    torch.testing.assert_close(exported.module()(**batch).logits, main_output(model, batch))
    assert any("packed_linear" in str(node.target) for node in exported.graph.nodes)


def test_a_folder_without_its_configuration_for_transformers_loads_as_before(copied, artifacts):
    _, batch = artifacts("tied_llama")
    expected = main_output(guidedq.load_quantized(copied), batch)
    edit(copied / "config.json", lambda content: content.pop("quantization_config"))
    entry = file_entry(copied / "config.json")
    edit(
        copied / "manifest.json",
        lambda content: content["files"]["config.json"].update(bytes=entry.bytes, sha256=entry.sha256),
    )
    assert torch.equal(main_output(guidedq.load_quantized(copied), batch), expected)


def test_importing_guidedq_is_enough_and_loads_no_framework(artifacts):
    code = (
        "import sys, guidedq; assert not {'torch', 'transformers'} & {*sys.modules}; import transformers as t;"
        f"model = t.AutoModelForCausalLM.from_pretrained({str(artifacts('tied_llama')[0])!r}); import torch;"
        "assert model(torch.zeros(1, 3, dtype=torch.int64)).logits.isfinite().all();"
        "print(type(model.lm_head).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "PackedLinear", done.stderr


def test_a_framework_that_was_imported_first_is_told_at_once(monkeypatch):
    called: list[bool] = []
    monkeypatch.setattr(announcement, "_call", lambda: called.append(True))
    before = list(sys.meta_path)
    announcement.announce()
    assert called
    assert sys.meta_path == before


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def quantization(change: Callable[[Any], object]) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "config.json", lambda content: change(content["quantization_config"]))


def unsigned(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Damage to the weights of a folder without a manifest, as `save_pretrained` writes it."""

    def damage(folder: Path) -> None:
        (folder / "manifest.json").unlink()
        (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))

    return damage


def flip(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-3] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(data))


def wrong_codes(data: bytes) -> bytes:
    start = 8 + int.from_bytes(data[:8], "little")
    return data[:start] + bytes(len(data) - start)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda folder: os.truncate(folder / WEIGHTS, 1000), "has 1000 bytes, expected"),
    "a flipped bit": (flip, "was altered"),
    "a newer manifest": (lambda folder: edit(folder / "manifest.json", lambda c: c.update(version=2)), "newer one"),
    "a newer configuration": (quantization(lambda content: content.update(version=2)), "Install a newer one"),
    "an unknown key": (quantization(lambda content: content.update(bits=4)), "exactly version, sites, tied"),
    "another shape": (quantization(lambda content: content["sites"][0].update(shape=[24, 40])), "the model has"),
    "a lost site": (quantization(lambda content: content["sites"].pop()), r"the model has \[24, 44\]"),
    "a foreign site": (
        quantization(lambda content: content["sites"][0].update(name="no.weight", parameters=["no.weight"])),
        "no.weight is no weight of the model",
    ),
    "another model": (
        lambda folder: edit(folder / "config.json", lambda content: content.update(num_hidden_layers=3)),
        "lacks 9 weights of the model",
    ),
    "truncated, unsigned": (unsigned(lambda data: data[:-7]), "no readable safetensors"),
    "a hostile header": (unsigned(lambda data: b"\xff" * 8 + data[8:]), "no readable safetensors"),
    "no header": (unsigned(lambda data: b""), "no readable safetensors"),
    "zeros for codes": (unsigned(wrong_codes), "the packed weight is damaged"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_artifacts_are_refused_with_a_reason(copied, damage, message):
    damage(copied)
    with pytest.raises(ArtifactError, match=message):
        CLASSES["tied_llama"].from_pretrained(copied)


@pytest.mark.parametrize("device_map", [{"": "disk"}, {"model": 0, "lm_head": "cpu"}])
def test_a_device_map_that_offloads_is_refused(copied, device_map):
    pytest.importorskip("accelerate")
    with pytest.raises(ArtifactError, match="cannot be offloaded"):
        CLASSES["tied_llama"].from_pretrained(copied, device_map=device_map)


def test_transformers_is_told_that_it_cannot_quantize_by_itself(tmp_path):
    from guidedq.backends.packed_torch.quantizer import PackedConfig

    with pytest.raises(ValueError, match="require the model to be pre-quantized"):
        transformers.AutoModelForCausalLM.from_pretrained(
            save_tiny_transformer("llama", tmp_path), quantization_config=PackedConfig((), {}, "none")
        )
