"""Answers of a fitted law, and its TOML."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from law_data import COUNTS, SIZES, TRAINING, exponential_increase, grid, swept_models

from guidedq.errors import LawError
from guidedq.law.assembly import assemble_law
from guidedq.law.effective import EffectiveWidth
from guidedq.law.prediction import caveats, foretell
from guidedq.law.record import GUIDED, UNIFORM, Law, law_toml, read_law
from guidedq.law.sweep import check_widths
from guidedq.law.training import PUBLISHED_LAW


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
    assert asked.bytes == pytest.approx(2e6 * 3.5 / 8)


@pytest.mark.parametrize(
    ("parameters", "tokens", "bits", "outside"),
    [
        (2e6, 3e6, 3.5, {}),
        (5e4, 12e7, 8.0, {}),
        (7e9, 2e12, 3.5, {"parameters": SIZES[-1], "tokens": COUNTS[-1]}),
        (4e4, 4e5, 9.0, {"parameters": SIZES[0], "tokens": COUNTS[0], "bits": 8.0}),
    ],
)
def test_what_lies_far_from_the_measured_models_is_called_extrapolated(
    law: Law, parameters: float, tokens: float, bits: float, outside: dict[str, float]
) -> None:
    asked = foretell(law, UNIFORM, parameters, tokens, bits)
    assert asked.extrapolated == outside
    assert caveats(law, asked) == ()


def test_of_one_measured_size_every_other_is_extrapolated_and_the_answer_says_so() -> None:
    law = assemble_law(swept_models(SIZES[:1]), "nats/token", 16.0, language_models=True)
    other = foretell(law, UNIFORM, 1.2 * SIZES[0], 8e6, 3.5)
    assert other.extrapolated == {"parameters": SIZES[0]}
    assert "one size alone was measured (100,000 parameters)" in caveats(law, other)[0]
    assert "power law assumes" in caveats(law, other)[0]
    same = foretell(law, UNIFORM, None, 8e6, 3.5)
    assert same.extrapolated == {}
    assert not any("one size" in text for text in caveats(law, same))


def test_a_law_of_one_model_answers_for_this_model_alone() -> None:
    law = assemble_law(swept_models(SIZES[:1], [1e6]), "nats/token", 16.0, language_models=True)
    asked = foretell(law, UNIFORM, None, None, 3.5)
    assert (asked.parameters, asked.tokens) == (SIZES[0], 1e6)
    assert asked.increase == pytest.approx(float(exponential_increase(grid(SIZES[:1], [1e6], [3.5]))[0]), rel=1e-3)
    assert asked.loss == pytest.approx(law.models[0].loss + asked.increase)
    with pytest.raises(LawError, match="several sizes or token counts"):
        foretell(law, UNIFORM, 2 * SIZES[0], None, 3.5)


def test_where_the_published_training_law_misses_the_measured_loss_no_equivalent_is_told() -> None:
    law = assemble_law(swept_models(SIZES[:1], [1e6]), "nats/token", 16.0, language_models=True)
    asked = foretell(law, UNIFORM, None, None, 3.5)
    assert law.training is None and (asked.equivalent, asked.effective_share) == (None, None)
    assert "the published training law says" in caveats(law, asked)[0]
    believed = [
        replace(one, loss=float(PUBLISHED_LAW.loss(float(one.parameters), one.tokens or math.nan)))
        for one in law.models
    ]
    law = assemble_law(believed, "nats/token", 16.0, language_models=True)
    asked = foretell(law, UNIFORM, None, None, 3.5)
    assert law.training == PUBLISHED_LAW and asked.equivalent is not None and asked.effective_share is not None
    assert caveats(law, asked) == ()


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


def test_a_file_of_an_older_version_is_read_and_its_published_law_only_where_it_holds(tmp_path: Path) -> None:
    alone = assemble_law(swept_models(SIZES[:1], [1e6]), "nats/token", 16.0, language_models=True)
    fitted = assemble_law(swept_models(), "nats/token", 16.0, language_models=True)
    assert fitted.training is not None
    width = EffectiveWidth(g=1.0, low=0.9, high=1.1)
    believing = replace(
        alone,
        training=PUBLISHED_LAW,
        training_problem="",
        allocations={name: replace(one, effective=width) for name, one in alone.allocations.items()},
    )
    bare = replace(fitted, training=replace(fitted.training, intervals={}))
    for older, newer in ((believing, alone), (bare, bare)):
        (tmp_path / "law.toml").write_text(law_toml(older))
        assert read_law(tmp_path / "law.toml") == newer


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
