import dataclasses
from abc import ABC
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidedq.errors import RecipeError
from guidedq.registry import KINDS, available, name_of, parse_stage, stage_text

EVERY = [(kind, name) for kind in KINDS for name in available(kind)]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_stage_is_a_frozen_dataclass_with_defaults_and_a_docstring(kind: str, name: str) -> None:
    leaf = available(kind)[name]
    stage = leaf()
    assert dataclasses.is_dataclass(leaf)
    assert leaf.__doc__ and not leaf.__doc__.startswith(leaf.__name__ + "(")
    fields = dataclasses.fields(leaf)
    for field in fields[:1]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(stage, field.name, None)
    assert any(base is ABC for base in leaf.__mro__)
    assert all(f"{field.name}:" in leaf.__doc__ for field in fields), "every option is documented"


@given(st.data())
def test_a_stages_text_round_trips(data: st.DataObject) -> None:
    kind, name = data.draw(st.sampled_from(EVERY))
    leaf = available(kind)[name]
    hints = get_type_hints(leaf)
    drawn = {
        field.name: data.draw(_values(hints[field.name], getattr(leaf(), field.name)))
        for field in dataclasses.fields(leaf)
    }
    try:
        stage = leaf(**drawn)
    except Exception:
        stage = leaf()
    text = stage_text(stage, kind)
    assert parse_stage(text, kind) == stage
    assert name_of(stage, kind) == name
    assert text.startswith(name)


def _values(hint: Any, default: Any) -> st.SearchStrategy[Any]:
    simple = {
        bool: st.booleans(),
        int: st.integers(-5, 1000),
        float: st.floats(allow_nan=False, allow_infinity=False),
        tuple[str, ...]: st.lists(st.from_regex(r"[a-z*.]{1,5}", fullmatch=True), max_size=3).map(tuple),
        tuple[int, ...]: st.lists(st.integers(0, 9), max_size=3).map(tuple),
    }
    if hint in simple:
        return simple[hint]
    choices = get_args(hint)
    if choices and all(isinstance(choice, str) for choice in choices):
        return st.sampled_from(choices)
    return st.just(default)


def test_the_default_has_the_short_text() -> None:
    assert [stage_text(available(kind)[name](), kind) for kind, name in EVERY] == [name for _, name in EVERY]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("gpt", "There are: gptq, nearest, stochastic"),
        ("gptq{damping=1}", "Its options: damping-fraction, activation-order"),
        ("gptq{damping-fraction=x}", "gptq.damping-fraction=x: expected float"),
        ("gptq{damping-fraction=1", "closing brace"),
        ("", "There are"),
    ],
)
def test_a_bad_text_is_refused_with_what_there_is(text: str, part: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_stage(text, "round")
    assert part in str(caught.value)


def test_an_unknown_kind_lists_the_kinds() -> None:
    with pytest.raises(RecipeError, match="rewrite, sample, guide"):
        available("rounds")


def test_a_foreign_object_is_no_stage() -> None:
    with pytest.raises(RecipeError, match="int is not registered"):
        name_of(3, "round")
