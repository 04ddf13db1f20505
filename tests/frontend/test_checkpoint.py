"""A folder that cannot be used is refused by name, before its weights are read."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from guidedq.errors import ModelError
from guidedq.frontend.checkpoint import open_checkpoint
from guidedq.frontend.safetensors_header import read_header

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4, dtype=torch.float16)}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    return tmp_path


def test_header_tells_every_tensor_of_the_file(folder):
    header = read_header(folder / "model.safetensors")
    assert {name: entry.shape for name, entry in header.items()} == {"a.weight": (2, 3), "b.weight": (4,)}
    assert header["b.weight"].dtype == "F16"


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_truncated_file_is_refused_wherever_it_is_cut(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        open_checkpoint(folder)


def test_file_with_bytes_after_its_end_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ModelError, match="the header says"):
        open_checkpoint(folder)


def test_digest_follows_the_content_and_not_the_folder(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("elsewhere")
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert open_checkpoint(other).digest == open_checkpoint(folder).digest
    save_file({**WEIGHTS, "a.weight": WEIGHTS["a.weight"] + 1}, other / "model.safetensors")
    assert open_checkpoint(other).digest != open_checkpoint(folder).digest


def test_pickles_are_refused_with_a_command_that_converts_them(folder):
    (folder / "model.safetensors").unlink()
    torch.save(WEIGHTS, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles") as caught:
        open_checkpoint(folder)
    command = str(caught.value).splitlines()[-1].strip()
    assert command.startswith("python -c ")
    subprocess.run(command.replace("python", f'"{sys.executable}"', 1), shell=True, check=True)
    assert open_checkpoint(folder).stored.keys() == WEIGHTS.keys()
    assert torch.equal(load_file(folder / "model.safetensors")["a.weight"], WEIGHTS["a.weight"])


def test_missing_shard_is_named(folder):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    places = {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ModelError, match=r"model-2\.safetensors"):
        open_checkpoint(folder)


def test_weight_that_the_index_promises_and_no_shard_holds_is_named(folder):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    places = dict.fromkeys((*WEIGHTS, "c.weight"), "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ModelError, match=r"c\.weight"):
        open_checkpoint(folder)


def test_index_cannot_lead_out_of_the_folder(folder):
    (folder / "model.safetensors").unlink()
    places = {"a.weight": "../model.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ModelError, match="outside"):
        open_checkpoint(folder)


def test_quantized_checkpoint_is_refused_with_its_method(folder):
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ModelError, match=r"already quantized \(awq\)"):
        open_checkpoint(folder)


def test_empty_folder_and_missing_config_say_what_is_expected(tmp_path):
    with pytest.raises(ModelError, match="empty"):
        open_checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="LoRA"):
        open_checkpoint(tmp_path)
