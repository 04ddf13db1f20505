"""Damaged, foreign and hostile artifacts of the torch backend are refused with a reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_folders import emit_random, load_kind
from safetensors.torch import load_file, save_file

from guidedq.artifacts.manifest import check_files, file_entry, read_manifest, write_manifest
from guidedq.backends.packed_torch.backend import PackedTorchBackend
from guidedq.errors import ArtifactError

BACKEND = PackedTorchBackend()
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    emit_random(load_kind("tied_llama", tmp_path_factory.mktemp("source")), folder, 0)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "artifact")


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def resign(folder: Path) -> None:
    """Make the manifest's digests those of the files, as an attacker would."""

    def change(content: dict[str, Any]) -> None:
        for name in content["files"]:
            entry = file_entry(folder / name)
            content["files"][name] = {"bytes": entry.bytes, "sha256": entry.sha256}

    edit_manifest(folder, change)


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    resign(folder)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        BACKEND.load(folder)


def test_a_whole_folder_loads_and_its_manifest_round_trips(folder):
    assert BACKEND.load(folder).config.vocab_size == 40
    before = (folder / "manifest.json").read_bytes()
    write_manifest(read_manifest(folder, "packed_torch"), folder)
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "manifest.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, name)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_truncated_file_is_named_with_its_sizes(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1])
    refused(folder, f"{name} has {len(data) - 1} bytes, expected {len(data)}")


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_one_flipped_bit_is_found(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 1
    (folder / name).write_bytes(bytes(data))
    refused(folder, f"{name} was altered")


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a newer version": (lambda content: content.update(version=2), "Install a newer one"),
    "an older version": (lambda content: content.update(version=0), "version"),
    "another backend": (lambda content: content.update(container="onnx"), "written by the backend 'onnx'"),
    "a missing key": (lambda content: content.pop("tied"), "exactly"),
    "an unknown key": (lambda content: content.update(extra=1), "exactly"),
    "a path out of the folder": (lambda content: content["files"].update({"../a": {}}), "plain file names|exactly"),
    "an absolute path": (
        lambda content: content["files"].update({"/etc/passwd": {"bytes": 1, "sha256": "0"}}),
        "plain file names",
    ),
    "a size that is none": (lambda content: content["files"][WEIGHTS].update(bytes=True), "a size"),
    "no weights": (lambda content: content["files"].pop(WEIGHTS), f"does not list {WEIGHTS}"),
    "sites that are none": (lambda content: content.update(sites={}), "a list"),
    "a shape that is none": (lambda content: content["sites"][0].update(shape=[4, -1]), "positive numbers"),
    "a shape not the model's": (lambda content: content["sites"][0].update(shape=[24, 40]), "the model has"),
    "an immense shape": (lambda content: content["sites"][0].update(shape=[2**60, 2**60]), "the model has"),
    "an unknown storage": (lambda content: content["sites"][0].update(storage="x"), "out_in or in_out"),
    "one weight twice": (lambda content: content["sites"].append(content["sites"][0]), "every parameter once"),
    "a weight unknown to the model": (
        lambda content: content["sites"][0].update(parameters=["no.such.weight"]),
        "lacks|holds|no weight",
    ),
    "a tie to nothing": (lambda content: content["tied"].update({"model.norm.weight": "nothing"}), "holds|lacks"),
}


@pytest.mark.parametrize(("change", "message"), MANIFESTS.values(), ids=MANIFESTS.keys())
def test_a_wrong_manifest_is_refused(folder, change, message):
    edit_manifest(folder, change)
    refused(folder, message)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"version": 1}', "\ufeff{}"])
def test_a_manifest_that_is_no_manifest_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    refused(folder, "manifest.json")


WEIGHT_FILES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "a lost tensor": (lambda tensors: tensors.pop("model.norm.weight"), "lacks 1 weights.*model.norm.weight"),
    "a foreign tensor": (lambda tensors: tensors.update(extra=torch.zeros(1)), "holds 1 weights.*extra"),
    "another shape": (lambda tensors: tensors.update({"model.norm.weight": torch.zeros(7)}), "model.norm.weight"),
    "a blob of floats": (
        lambda tensors: tensors.update({"model.embed_tokens.weight": torch.zeros(40, 24)}),
        "expected packed bytes",
    ),
    "a blob of zeros": (
        lambda tensors: tensors["model.embed_tokens.weight"].zero_(),
        "model.embed_tokens.weight: the packed weight is damaged",
    ),
}


@pytest.mark.parametrize(("change", "message"), WEIGHT_FILES.values(), ids=WEIGHT_FILES.keys())
def test_a_wrong_weights_file_is_refused_even_with_right_digests(folder, change, message):
    edit_weights(folder, change)
    refused(folder, message)


def test_a_weights_file_that_is_no_safetensors_is_refused_even_with_right_digests(folder):
    for data in (b"", b"\xff" * 100, (folder / WEIGHTS).read_bytes()[:200]):
        (folder / WEIGHTS).write_bytes(data)
        resign(folder)
        refused(folder, "no readable safetensors")


@pytest.mark.parametrize("architecture", ["NoSuchModel", "AutoModel", "Trainer", None])
def test_an_architecture_that_is_no_model_class_is_refused(folder, architecture):
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [architecture]
    (folder / "config.json").write_text(json.dumps(config))
    resign(folder)
    refused(folder, "cannot build the model")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_configuration_that_is_no_json_is_refused(folder, name):
    (folder / name).write_text("{")
    resign(folder)
    refused(folder, "cannot build the model")


def test_files_beside_the_listed_ones_do_not_matter(folder):
    (folder / "report.json").write_text("{}")
    check_files(read_manifest(folder, "packed_torch").files, folder)
