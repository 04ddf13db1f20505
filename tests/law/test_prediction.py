"""Answers of a fitted law, and its TOML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from law_data import SIZES, TRAINING, exponential_increase, grid, swept_models

from guidedq.errors import LawError
from guidedq.law.assembly import assemble_law
from guidedq.law.prediction import foretell, trades
from guidedq.law.record import GUIDED, UNIFORM, Law, law_toml, read_law
from guidedq.law.sweep import check_widths


@pytest.fixture(scope="module")
def law() -> Law:
    """Of three sizes after four trainings each."""
    return assemble_law(swept_models(), "nats/token", 16.0, language_models=True)


def test_the_better_form_answers_for_models_that_were_not_measured(law: Law) -> None:
    truth = float(exponential_increase(grid([2e6], [3e6], [3.5]))[0])
    asked = foretell(law, UNIFORM, 2e6, 3e6, 3.5)
    assert (asked.form, asked.increase) == ("exponential", pytest.approx(truth, rel=1e-3))
    assert foretell(law, GUIDED, 2e6, 3e6, 3.5).increase == pytest.approx(truth / 3, rel=1e-3)
    assert asked.loss == pytest.approx(float(TRAINING.loss(2e6, 3e6)) + truth, rel=1e-2)
    assert not asked.extrapolated
    assert foretell(law, UNIFORM, 2e6, 3e6, 9.0).extrapolated


def test_trades_have_the_same_bytes_and_the_same_training(law: Law) -> None:
    asked = foretell(law, UNIFORM, 3e5, 4e6, 3.0)
    found = trades(law, UNIFORM, asked)
    assert [one.bits for one in found] == [2.0, 2.5, 3.0, 3.5, 4.0]
    assert [one.parameters * one.bits for one in found] == pytest.approx([9e5] * 5)
    assert {one.tokens for one in found} == {4e6}
    assert found[2] == asked


def test_a_law_of_one_model_answers_for_this_model_alone() -> None:
    law = assemble_law(swept_models(SIZES[:1], [1e6]), "nats/token", 16.0, language_models=True)
    asked = foretell(law, UNIFORM, None, None, 3.5)
    assert (asked.parameters, asked.tokens) == (SIZES[0], 1e6)
    assert asked.increase == pytest.approx(float(exponential_increase(grid(SIZES[:1], [1e6], [3.5]))[0]), rel=1e-3)
    assert asked.loss == pytest.approx(law.models[0].loss + asked.increase)
    assert trades(law, UNIFORM, asked) == ()
    with pytest.raises(LawError, match="several sizes or token counts"):
        foretell(law, UNIFORM, 2 * SIZES[0], None, 3.5)


def test_checkpoints_of_one_size_do_not_tell_of_another_size_by_the_exponential_law() -> None:
    law = assemble_law(swept_models(SIZES[:1]), "nats/token", 16.0, language_models=True)
    assert foretell(law, UNIFORM, None, 8e6, 3.5).form == "exponential"
    assert foretell(law, UNIFORM, 2 * SIZES[0], 8e6, 3.5).form == "power"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ((UNIFORM, None, 1e6, 3.0), "which parameters"),
        ((UNIFORM, 1e5, None, 3.0), "which tokens"),
        ((UNIFORM, 1e5, 1e6, 0.0), "more than 0"),
        ((UNIFORM, -1.0, 1e6, 3.0), "more than 0"),
        (("mixed", 1e5, 1e6, 3.0), "was not swept"),
    ],
)
def test_a_question_without_an_answer_is_refused_in_words(
    law: Law, asked: tuple[str, float | None, float | None, float], says: str
) -> None:
    with pytest.raises(LawError, match=says):
        foretell(law, *asked)


def test_what_a_law_is_saved_as_is_read_again(law: Law, tmp_path: Path) -> None:
    alone = assemble_law(swept_models(SIZES[:1], [1e6]), "nats/token", 16.0, language_models=False)
    nothing = replace(alone.models[0], tokens=None, points=())
    for saved in (law, alone, replace(alone, models=(nothing,))):
        (tmp_path / "law.toml").write_text(law_toml(saved))
        assert read_law(tmp_path / "law.toml") == saved


@pytest.mark.parametrize(
    "text", ["", "unit = 3", "[allocations]", "no toml", 'unit = "n"\ntrain-bits = 16\nmodels = [3]']
)
def test_a_file_that_is_no_law_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "law.toml").write_text(text)
    with pytest.raises(LawError, match="no law that guidedq law wrote"):
        read_law(tmp_path / "law.toml")
    with pytest.raises(LawError, match="no law that guidedq law wrote"):
        read_law(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("widths", "says"), [((4, 3, 2), "4 at least"), ((9, 4, 3, 2), "width 9"), ((4, 3, 2, 1), "width 1")]
)
def test_widths_that_cannot_be_swept_are_refused(widths: tuple[int, ...], says: str) -> None:
    with pytest.raises(LawError, match=says):
        check_widths(widths)
