"""What is no model is refused by what it is."""

import subprocess
import sys

import pytest

from guidedq.errors import ModelError
from guidedq.frontend import load


def test_path_that_does_not_exist_is_named():
    with pytest.raises(ModelError, match="no such path: nowhere"):
        load("nowhere")


def test_missing_folder_beside_existing_ones_is_a_path_and_not_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(ModelError, match="no such path: models/mine"):
        load("models/mine")


@pytest.mark.parametrize(("name", "said"), [("w.pt", "pickle"), ("w.safetensors", "folder"), ("w.xyz", "not a kind")])
def test_file_of_another_kind_is_refused_with_what_to_give_instead(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=said):
        load(tmp_path / name)


def test_name_on_the_hub_without_a_connection_is_a_clear_error(monkeypatch):
    def unreachable(*_arguments, **_keywords):
        raise ConnectionError("offline")

    monkeypatch.setattr("guidedq.frontend.hub.snapshot_download", unreachable)
    with pytest.raises(ModelError, match=r"some-org/some-model.*offline"):
        load("some-org/some-model")


def test_importing_the_face_loads_no_model_library():
    code = "import sys, guidedq.frontend; print({'transformers', 'onnx', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
