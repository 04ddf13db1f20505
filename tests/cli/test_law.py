"""`guidedq law` on a model of some thousand weights, from end to end in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import options, run, run_json, save_language_model
from law_data import swept_models
from safetensors.torch import load_file, save_file

import guidedq
from guidedq.cli.law_text import print_law
from guidedq.ir.program import TorchProgram
from guidedq.law.assembly import assemble_law

SHARPER = 10.0
"""Random weights are scaled by this, so that the model is sure of something, by what its blocks compute."""

SWEEP = ("--tokens", "1M,4M", "--widths", "5,4,3,2", "--max-bits", "5")


@dataclass(frozen=True)
class Swept:
    """One sweep of two models that all tests of this file look at."""

    root: Path
    models: tuple[Path, Path]
    out: Path
    content: dict[str, Any]

    @property
    def options(self) -> list[object]:
        return options(self.root)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    root = tmp_path_factory.mktemp("swept")
    first = save_language_model(root / "step_1")
    _scale(first, SHARPER)
    second = save_language_model(root / "step_2")
    _scale(second, 1.2 * SHARPER)
    np.savez(root / "tokens.npz", input_ids=_written(first))
    content = run_json("law", first, second, *SWEEP, "--out", root / "law", *options(root))
    return Swept(root=root, models=(first, second), out=root / "law", content=content)


def _scale(model: Path, factor: float) -> None:
    file = model / "model.safetensors"
    tensors = {name: factor * values if values.dim() == 2 else values for name, values in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def _written(model: Path) -> np.ndarray:
    """Sequences by the model itself."""
    program = guidedq.load(model).program
    assert isinstance(program, TorchProgram)
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(3, 40, (288, 1), generator=generator)
    return program.module.write(start, 16, generator).numpy()  # type: ignore[union-attr, operator]


def test_every_width_is_measured_in_both_allocations_in_about_the_same_bytes(swept: Swept) -> None:
    for model in swept.content["models"]:
        points = {(point["allocation"], point["width"]): point for point in model["points"]}
        assert set(points) == {(name, width) for name in ("uniform", "guided") for width in (5, 4, 3, 2)}
        for width in (5, 4, 3, 2):
            assert points["guided", width]["bits"] == pytest.approx(points["uniform", width]["bits"], rel=0.05)
        divergences = [points["uniform", width]["kl"] for width in (5, 4, 3, 2)]
        assert divergences == sorted(divergences)
        assert points["uniform", 2]["loss"] == pytest.approx(model["loss"] + points["uniform", 2]["increase"])


def test_the_folder_holds_the_law_and_its_figures(swept: Swept) -> None:
    assert json.loads((swept.out / "law.json").read_text()) | {"folder": str(swept.out)} == swept.content
    names = {path.name for path in swept.out.iterdir()}
    assert {"law.toml", "law.json", "curve.png", "curve.svg", "training.png"} <= names
    assert not names & {"effective-parameters.png", "equal-loss.png"}
    assert all((swept.out / name).stat().st_size > 1000 for name in names)


def test_a_second_run_finds_the_measurements_and_tells_the_same(swept: Swept) -> None:
    again = run("law", *swept.models, *SWEEP, *swept.options)
    assert again.exit_code == 0, again.stderr
    assert "evaluate" not in again.stderr
    for form in swept.content["allocations"]["uniform"]["forms"].values():
        error = form["held_out_widths"]
        assert f"{'unknown' if error is None else f'{error:.3f}'} on widths left out" in again.stdout
    for said in ("gamma_D", "g_post", "delta", "left out", "D/N"):
        assert said in again.stdout


def test_a_series_whose_loss_no_training_law_tells_has_no_effective_parameters_and_says_so(swept: Swept) -> None:
    again = run("law", *swept.models, *SWEEP, *swept.options)
    assert "costs parameters" not in again.stdout
    assert "training law  none: the published training law says" in again.stdout
    assert "not drawn     lines of equal loss, for want of a training law" in again.stdout
    assert (swept.content["training"], swept.content["allocations"]["guided"]["effective"]) == (None, None)
    assert swept.content["training_problem"] in again.stdout


def test_a_fitted_training_law_is_shown_with_its_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    law = assemble_law(swept_models(), "nats/token", 16.0, language_models=True)
    print_law(law, None)
    shown = capsys.readouterr().out
    assert "costs parameters" in shown and "N_eff" in shown and "not drawn" not in shown
    assert "E 1.5 (1.5 to 1.5), A 300 (300 to 300), alpha 0.4 (0.4 to 0.4)" in shown


def test_the_saved_law_answers_without_a_model(swept: Swept) -> None:
    words = ("law", "--predict", swept.out / "law.toml", "--tokens", "2M", "--bits", "3.5", "--allocation", "uniform")
    low, middle, high = (run_json(*words[:-3], bits, *words[-2:])["increase"] for bits in (4.5, 4.0, 3.5))
    assert low < middle < high
    assert "loss" in run(*words).stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["law"], "name a model"),
        (["law", "a", "b"], "no --tokens"),
        (["law", "a", "b", "--tokens", "1M"], "1 numbers for 2 models"),
        (["law", "a", "--tokens", "many"], "expected a number above zero"),
        (["law", "a", "--widths", "4,3,2"], "4 at least"),
        (["law", "a", "--widths", "3.5,3,2,4"], "whole bits"),
        (["law", "a", "--finetune-steps", "3"], "goes with --finetune"),
        (["law", "a", "--finetune", "missing.txt"], "no such file"),
        (["law", "a", "--bits", "3"], "--predict FILE"),
        (["law", "--predict", "missing.toml", "--bits", "3"], "no law that guidedq law wrote"),
        (["law", "--predict", "missing.toml"], "pass --bits"),
        *(
            (["law", "--predict", "missing.toml", "--bits", "3", *extra], f"leave {extra[0]} out")
            for extra in (
                ["--out", "x"],
                ["--widths", "4,3,2"],
                ["--finetune", "x"],
                ["--train-bits", "8"],
                ["--overwrite"],
                ["--data", "x"],
                ["--eval-data", "x"],
                ["--seed", "1"],
            )
        ),
    ],
)
def test_bad_input_is_refused_in_words_before_any_work(words: list[str], says: str) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert says in result.stderr
