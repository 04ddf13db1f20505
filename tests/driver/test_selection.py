"""The best selection against all selections."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidedq.driver.selection import best_selection

AMOUNT = st.floats(-3, 3, allow_nan=False, width=16)


@st.composite
def problems(draw):
    """Up to five things that need up to four others."""
    things, others = [f"t{n}" for n in range(draw(st.integers(0, 5)))], [f"o{n}" for n in range(4)]
    gains = {name: draw(AMOUNT) for name in things}
    costs = {name: abs(draw(AMOUNT)) for name in others}
    return gains, costs, {name: draw(st.lists(st.sampled_from(others), unique=True)) for name in things}


def worth(chosen, gains, costs, needs):
    return sum(gains[name] for name in chosen) - sum(costs[o] for o in {o for name in chosen for o in needs[name]})


@given(problems())
def test_no_selection_is_worth_more(problem):
    found = best_selection(*problem)
    every = chain.from_iterable(combinations(problem[0], size) for size in range(len(problem[0]) + 1))
    assert worth(found, *problem) == pytest.approx(max(worth(chosen, *problem) for chosen in every), abs=1e-9)


def test_what_none_pays_for_alone_several_share():
    needs = {"a": ["place"], "b": ["place"]}
    assert best_selection({"a": 2.0, "b": 0.0}, {"place": 3.0}, needs) == frozenset()
    assert best_selection({"a": 2.0, "b": 2.0}, {"place": 3.0}, needs) == {"a", "b"}
