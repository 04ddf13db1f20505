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


NONSENSE = ["", "abc", "3.5 apples", "-3bits", "1e3", "bits", "3.5.1", "MB", "+0.02", "nan", "∞", "٣bits"]


@pytest.mark.parametrize("text", NONSENSE)
def test_what_is_no_budget_says_what_one_looks_like(text: str) -> None:
    with pytest.raises(BudgetError, match=r"3\.5bits.*120MB"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0", "0bits", "0.0MB"])
def test_a_budget_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="above zero"):
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
