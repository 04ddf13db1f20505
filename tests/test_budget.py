import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidedq.budget import parse_budget
from guidedq.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("4bits", 500),
        ("4", 500),
        ("4 bits", 500),
        ("3.5bits", 437),
        ("1bit", 125),
        ("4BPW", 500),
        ("120B", 120),
        ("1.5kB", 1500),
        ("2KiB", 2048),
        ("120MB", 120_000_000),
        ("0.5 GB", 500_000_000),
        ("1gib", 2**30),
    ],
)
def test_a_budget_in_any_spelling_comes_to_bytes(text: str, limit: int) -> None:
    assert parse_budget(text).limit_bytes(1000) == limit


@pytest.mark.parametrize(
    ("text", "kind", "change"),
    [
        ("+0.02nats", "nats", 0.02),
        ("+ 0.5 nat", "nats", 0.5),
        ("1.02x", "perplexity", math.log(1.02)),
        ("2X", "perplexity", math.log(2.0)),
        ("-0.5%", "accuracy", 0.005),
        ("\N{MINUS SIGN}1 %", "accuracy", 0.01),
        ("+0.01error", "error", 0.01),
    ],
)
def test_a_budget_for_loss_says_what_may_change_and_by_how_much(text: str, kind: str, change: float) -> None:
    budget = parse_budget(text)
    assert budget.bounds_loss
    assert budget.kind == kind
    assert budget.largest_change == pytest.approx(change)


def test_a_budget_for_size_bounds_no_loss() -> None:
    assert not any(parse_budget(text).bounds_loss for text in ("3.5bits", "4", "120MB"))


NONSENSE = ["", "abc", "3.5 apples", "-3bits", "1e3", "bits", "3.5.1", "MB", "+0.02", "nan", "∞", "٣bits"]
NONSENSE += ["0.02nats", "-0.02nats", "+1.02x", "0.5%", "+0.5%", "1.02 x y", "0.01error", "-0.01error"]


@pytest.mark.parametrize("text", NONSENSE)
def test_what_is_no_budget_says_what_one_looks_like(text: str) -> None:
    with pytest.raises(BudgetError, match=r"3\.5bits.*120MB.*\+0\.02nats.*1\.02x.*-0\.5%"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0", "0bits", "0.0MB", "+0nats", "-0%"])
def test_a_budget_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="above zero"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["1x", "0.98x", "0x"])
def test_a_ratio_of_perplexities_that_allows_nothing_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="above 1"):
        parse_budget(text)


@given(st.decimals(min_value="0.01", max_value=64, places=2), st.integers(1, 10**12))
def test_bits_never_allow_more_than_was_asked(bits: object, parameters: int) -> None:
    limit = parse_budget(f"{bits}bits").limit_bytes(parameters)
    assert 8 * limit <= float(str(bits)) * parameters < 8 * (limit + 1)


@given(st.text(max_size=12))
def test_no_text_at_all_breaks_the_parser(text: str) -> None:
    try:
        assert parse_budget(text).amount > 0
    except BudgetError as error:
        assert repr(text) in str(error)
