"""`guidedq verify`: an artifact is what its report says, or one is told what is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import options, run, run_json, save_language_model, save_tokens

import guidedq
from guidedq.artifacts.report import report_digest
from guidedq.registry import parse_stage


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


def change(folder: Path, edit: Callable[[dict[str, Any]], object], *, seal: bool = True) -> None:
    """Alter the report; with `seal` as one would who knows how its digest is made."""
    content = json.loads((folder / "report.json").read_text())
    edit(content)
    if seal:
        content["digests"]["report"] = report_digest(content)
    (folder / "report.json").write_text(json.dumps(content))


def test_an_artifact_is_what_its_report_says(root: Path, folder: Path) -> None:
    result = verify(folder)
    assert result.exit_code == 0, result.stderr
    assert "model.safetensors" in result.stdout and "kl" in result.stdout
    assert "NOT" not in result.stdout
    found = json.loads(verify(folder, "--json").stdout)
    assert found["agrees"]
    assert {number["name"] for number in found["numbers"]} == {"kl", "loss_before", "loss_after"}
    assert found["checked"] == ["artifact", "recipe", "model", "data", "calibration", "evaluation", "report"]
    assert found["digests"]["report"] == report_digest(json.loads((folder / "report.json").read_text()))
    assert (found["versions"], found["recompiled"]) == ({}, {})
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
        (lambda content: content["digests"].update(calibration="0" * 64), "the calibration samples are not those"),
        (lambda content: content["digests"].update(data="0" * 64), "the samples are not those"),
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


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["forecast"].update(kl_high=1e9),
        lambda content: content["diagnostics"][0].update(verdict="fine", number=0.5),
        lambda content: content["digests"].update(allocation="0" * 64),
        lambda content: content["notices"].append("all is well"),
    ],
)
def test_a_report_that_was_altered_is_refused_by_all_who_read_it(
    folder: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    change(folder, edit, seal=False)
    (folder / "policy.toml").write_text("[at-most]\nkl = 1e9")
    for result in (verify(folder), run("check", folder, "--policy", folder / "policy.toml")):
        assert result.exit_code in (1, 2)
        assert "was altered" in result.stderr and "Traceback" not in result.stderr


def test_the_digest_of_a_report_does_not_depend_on_how_its_json_is_laid_out(folder: Path) -> None:
    content = json.loads((folder / "report.json").read_text())
    laid_out = json.dumps(dict(reversed(content.items())), indent=4)
    (folder / "report.json").write_text(laid_out)
    assert verify(folder).exit_code == 0


def test_a_report_of_an_older_version_has_no_digest_and_is_read(folder: Path) -> None:
    def older(content: dict[str, Any]) -> None:
        del content["digests"]["report"], content["run"]

    change(folder, older, seal=False)
    found = verify(folder, "--json")
    assert found.exit_code == 0, found.stderr
    assert "report" not in json.loads(found.stdout)["checked"]


def test_other_versions_are_told_and_do_not_fail(folder: Path) -> None:
    change(folder, lambda content: content["versions"].update(torch="1.0", numpy="0.1"))
    found = verify(folder)
    assert found.exit_code == 0, found.stderr
    assert f"torch 1.0 in the report, {torch.__version__.partition('+')[0]}" in found.stdout
    assert set(json.loads(verify(folder, "--json").stdout)["versions"]) == {"torch", "numpy"}


def test_the_same_comes_out_again_from_the_report_alone(folder: Path) -> None:
    result = verify(folder, "--recompile", "--json")
    assert result.exit_code == 0, result.stderr
    again = json.loads(result.stdout)["recompiled"]
    assert {"artifact", "allocation", "calibration", "evaluation", "recipe"} <= set(again)
    assert all(digest["report"] == digest["now"] for digest in again.values())


def test_what_comes_out_otherwise_exits_with_3(folder: Path) -> None:
    change(folder, lambda content: content["digests"].update(allocation="0" * 64))
    result = verify(folder, "--recompile")
    assert result.exit_code == 3
    assert "NOT 000000000000" in result.stdout
    assert "does not come out again" in result.stderr and "allocation" in result.stderr


def test_a_report_is_a_recipe_and_the_words_of_the_command_line_make_the_same_file(folder: Path, root: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    sampler = parse_stage(report["sampling"]["sampler"], "sample")
    words = ["--recipe", folder / "report.json", "--backend", report["backend"], "--seed", report["seed"]]
    words += [word for file in report["sampling"]["files"] for word in ("--data", file)]
    words += ["--samples", sampler.samples, "--workspace", folder / "workspace", "--threads", report["run"]["threads"]]
    model, budget = report["model"]["path"], report["budget"]["asked"]
    made = run_json("compile", model, "--budget", budget, "--out", folder / "again", *words)
    assert made["recipe"] == report["recipe"]
    for name in ("artifact", "allocation", "recipe", "calibration", "evaluation"):
        assert made["digests"][name] == report["digests"][name], name


def test_every_precision_of_a_nested_artifact_is_measured_again(root: Path, tmp_path: Path) -> None:
    nested = tmp_path / "nested"
    run_json("compile", root / "model", "--nested", "3,5", "--out", nested, *options(root))
    numbers = {number["name"]: number for number in json.loads(verify(nested, "--json").stdout)["numbers"]}
    names = {f"{name} at {bits} bits" for name in ("kl", "loss_before", "loss_after") for bits in (3, 5)}
    assert set(numbers) == names
    assert numbers["kl at 3 bits"]["measured"] > numbers["kl at 5 bits"]["measured"]

    def better(content: dict[str, Any]) -> None:
        content["precisions"][0]["measured"]["kl"] *= 0.5

    change(nested, better)
    result = verify(nested)
    assert result.exit_code == 3
    assert "kl at 3 bits" in result.stderr and "5 bits" not in result.stderr


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
