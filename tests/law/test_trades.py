"""What else the bytes could be spent on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import run, run_json
from law_data import COUNTS, SIZES, exponential_increase, grid, swept_models

from guidedq.errors import LawError
from guidedq.law.assembly import assemble_law
from guidedq.law.figures import law_figures, lines_problem
from guidedq.law.prediction import foretell
from guidedq.law.record import UNIFORM, Law, law_toml
from guidedq.law.trades import same_bytes, same_size


def law_of(sizes: Sequence[float], counts: Sequence[float] = COUNTS) -> Law:
    return assemble_law(swept_models(sizes, counts), "nats/token", 16.0, language_models=True)


@pytest.fixture(scope="module")
def law() -> Law:
    """Of three sizes after four trainings each."""
    return law_of(SIZES)


@pytest.fixture(scope="module")
def alone() -> Law:
    """Of one model."""
    return law_of(SIZES[:1], COUNTS[:1])


def test_trades_have_the_same_bytes_and_the_same_training(law: Law) -> None:
    asked = foretell(law, UNIFORM, 3e5, 4e6, 3.0)
    found = same_bytes(law, UNIFORM, asked)
    assert [one.bits for one in found] == [2.0, 2.5, 3.0, 3.5, 4.0]
    assert [one.parameters * one.bits for one in found] == pytest.approx([9e5] * 5)
    assert {one.bytes for one in found} == {asked.bytes}
    assert {one.tokens for one in found} == {4e6}
    assert found[2] == asked


def test_half_a_bit_more_and_less_is_told_of_one_model_too(alone: Law) -> None:
    asked = foretell(alone, UNIFORM, None, None, 3.0)
    found = same_size(alone, UNIFORM, asked)
    assert [one.bits for one in found] == [2.5, 3.0, 3.5]
    assert [one.bytes for one in found] == [SIZES[0] * bits / 8 for bits in (2.5, 3.0, 3.5)]
    truth = exponential_increase(grid(SIZES[:1], COUNTS[:1], [2.5, 3.0, 3.5]))
    assert [one.loss for one in found] == pytest.approx(list(alone.models[0].loss + truth), rel=1e-3)
    assert [one.bits for one in same_size(alone, UNIFORM, foretell(alone, UNIFORM, None, None, 0.4))] == [0.4, 0.9]


def test_what_does_not_tell_of_other_sizes_says_why(alone: Law) -> None:
    with pytest.raises(LawError, match="the published training law says"):
        same_bytes(alone, UNIFORM, foretell(alone, UNIFORM, None, None, 3.0))


@pytest.mark.parametrize(("sizes", "counts"), [(SIZES[:1], COUNTS[:1]), (SIZES[:1], COUNTS), (SIZES, COUNTS)])
def test_lines_of_equal_loss_are_drawn_or_it_is_said_why_not(sizes: Sequence[float], counts: Sequence[float]) -> None:
    law = law_of(sizes, counts)
    drawn = "equal-loss" in law_figures(law)
    assert drawn == (len(sizes) > 1) == (lines_problem(law) == "")


def test_the_command_answers_both_halves_of_the_question(law: Law, alone: Law, tmp_path: Path) -> None:
    for name, one in (("many", law), ("alone", alone)):
        (tmp_path / f"{name}.toml").write_text(law_toml(one))
    words = ("law", "--predict", tmp_path / "many.toml", "--parameters", "300k", "--tokens", "4M", "--bits", "3")
    told = run_json(*words)
    assert [len(told[table]) for table in ("same_size", "same_bytes")] == [3, 5]
    assert told["notices"] == []
    assert "in the same 0.113 MB" in run(*words).stdout
    words = ("law", "--predict", tmp_path / "alone.toml", "--bits", "3")
    told = run_json(*words)
    assert [len(told[table]) for table in ("same_size", "same_bytes")] == [3, 0]
    assert "no trade of bits for parameters" in told["notices"][0] and len(told["notices"]) == 1
    shown = run(*words).stdout
    assert "with the same 100,000 parameters" in shown and "no trade of bits for parameters" in shown
    assert "equal loss " not in shown


def test_what_lies_outside_is_marked_in_the_answer(law: Law, tmp_path: Path) -> None:
    (tmp_path / "law.toml").write_text(law_toml(law))
    words = ("law", "--predict", tmp_path / "law.toml", "--parameters", "7B", "--tokens", "2T", "--bits", "3.5")
    assert run_json(*words)["extrapolated"] == {"parameters": SIZES[-1], "tokens": COUNTS[-1]}
    shown = run(*words).stdout
    assert "7,000,000,000* parameters, 2,000,000,000,000* training tokens, 3.5 bits" in shown
    assert "nearest to it: parameters 1,000,000, tokens 64,000,000" in shown
