"""`guidedq verify`: an artifact is what its report says, or one is told what is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import options, run, run_json, save_language_model, save_tokens

import guidedq


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verified")
    model = save_language_model(root / "model")
    run_json("compile", model, "--budget", "4bits", "--out", root / "out", *options(root))
    return root


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    """A copy of the artifact that a test may damage."""
    return Path(shutil.copytree(root / "out", tmp_path / "out"))


def verify(folder: Path, *words: object) -> Any:
    return run("verify", folder, "--workspace", folder.parent / "workspace", *words)


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "report.json").read_text())
    edit(content)
    (folder / "report.json").write_text(json.dumps(content))


def test_an_artifact_is_what_its_report_says(root: Path, folder: Path) -> None:
    result = verify(folder)
    assert result.exit_code == 0, result.stderr
    assert "model.safetensors" in result.stdout and "kl" in result.stdout
    assert "NOT" not in result.stdout
    found = json.loads(verify(folder, "--json").stdout)
    assert found["agrees"]
    assert {number["name"] for number in found["numbers"]} == {"kl", "loss_before", "loss_after"}
    assert all(number["reported"] == number["measured"] for number in found["numbers"])
    assert set(found["files"]) == {path.name for path in folder.iterdir()} - {"report.json", "report.html"}
    again = guidedq.verify(folder, workspace=root / "workspace")
    assert again.agrees and [number.measured for number in again.numbers] == [n["measured"] for n in found["numbers"]]


@pytest.mark.parametrize("name", ["kl", "loss_before", "loss_after"])
def test_a_number_that_is_not_so_exits_with_3(folder: Path, name: str) -> None:
    change(folder, lambda content: content["measured"].update({name: 1.1 * content["measured"][name]}))
    result = verify(folder)
    assert result.exit_code == 3
    assert "NOT within" in result.stdout
    assert name in result.stderr


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
def test_an_altered_truncated_or_missing_file_is_an_error_that_names_it(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    altered = bytes([*whole[:-1], whole[-1] ^ 1])
    for damaged, part in ((altered, "altered"), (whole[:-1], "bytes, expected"), (None, "is missing")):
        (folder / name).unlink() if damaged is None else (folder / name).write_bytes(damaged)
        result = verify(folder)
        assert (result.exit_code, result.stdout) == (1, "")
        assert name in result.stderr and part in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (lambda content: content.update(version=99), "Install a newer"),
        (lambda content: content["recipe"].update(min_bits=7), "its recipe has not the digest"),
        (lambda content: content["files"].pop("config.json"), "its artifact has not the digest"),
        (lambda content: content.update(files={}), "Compile it anew"),
        (lambda content: content.update(sampling=None), "Compile it anew"),
        (lambda content: content["model"].update(digest="0" * 64), "another model"),
        (lambda content: content.pop("measured"), "no report"),
    ],
)
def test_a_report_that_does_not_belong_is_an_error(
    folder: Path, edit: Callable[[dict[str, Any]], object], part: str
) -> None:
    change(folder, edit)
    result = verify(folder)
    assert (result.exit_code, result.stdout) == (1, "")
    assert part in result.stderr and "Traceback" not in result.stderr


def test_data_and_model_may_have_moved(root: Path, folder: Path) -> None:
    def forget(content: dict[str, Any]) -> None:
        content["model"]["path"] = "nowhere/model"
        content["sampling"]["files"] = ["nowhere/tokens.npz"]

    change(folder, forget)
    told = verify(folder)
    assert told.exit_code == 1 and "--data" in told.stderr
    assert "--model" in verify(folder, "--data", root / "tokens.npz").stderr
    result = verify(folder, "--data", root / "tokens.npz", "--model", root / "model")
    assert result.exit_code == 0, result.stderr


def test_other_data_are_told_from_those_of_the_report(folder: Path, tmp_path: Path) -> None:
    other = save_tokens(tmp_path / "other.npz", seed=5)
    result = verify(folder, "--data", other)
    assert result.exit_code == 1
    assert "not those of the report" in result.stderr and "other.npz" in result.stderr


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    assert "has no report.json" in verify(tmp_path).stderr
    assert verify(tmp_path / "nowhere").exit_code == 1
