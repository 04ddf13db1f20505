import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidedq.errors import FormatError, GuidedQError, RecipeError
from guidedq.quant.formats import AffineFormat, EntropyCode, EntropyFormat
from guidedq.recipe import Recipe, load_recipe, named_recipes, parse_recipe

STAGE_SETTINGS = st.lists(
    st.sampled_from(
        [
            "guide=none",
            "guide=kfac",
            "guide=fisher{groups=3}",
            "guide=hessian",
            "measure=rounded",
            "round=nearest",
            "round=gptq{activation-order=true damping-fraction=0.05}",
            "round=stochastic",
            "correct=prefix",
            "allocate=exact",
            "allocate=uniform{bits=4 group-size=32}",
            "forecast=additive",
        ]
    ),
    max_size=4,
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    coding = draw(st.sampled_from(["entropy", "fixed"]))
    narrowest = draw(st.integers(1 if coding == "entropy" else 2, 8))
    own = [f"coding={coding}", f"min-bits={narrowest}", f"max-bits={draw(st.integers(narrowest, 8))}"]
    own.append(
        "group-sizes=" + ",".join(map(str, draw(st.lists(st.sampled_from([0, 16, 32, 64]), min_size=1, unique=True))))
    )
    own.append("outliers=" + ",".join(map(str, draw(st.lists(st.integers(0, 9), min_size=1, unique=True)))))
    own.append(f"symmetric={draw(st.booleans())}")
    own.append(f"scope={draw(st.sampled_from(['file', 'linear']))}")
    recipe = load_recipe(draw(st.sampled_from(named_recipes())))
    recipe = recipe.with_settings([*draw(STAGE_SETTINGS), *own])
    names = st.text(alphabet=string.printable + "é,\x7f\x00漢", max_size=12)
    return parse_recipe(recipe.toml().replace("keep = []", f"keep = {_array(draw(st.lists(names, max_size=3)))}"))


def _array(names: list[str]) -> str:
    escaped = ["".join(f"\\U{ord(letter):08x}" for letter in name) for name in names]
    return "[" + ", ".join(f'"{name}"' for name in escaped) + "]"


@given(recipes())
def test_a_recipe_reads_back_from_its_toml(recipe: Recipe) -> None:
    assert parse_recipe(recipe.toml()) == recipe


@pytest.mark.parametrize("name", named_recipes())
def test_a_named_recipe_reads_back_from_its_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(load_recipe(name).toml())
    assert load_recipe(str(path)) == load_recipe(name)


def test_what_a_file_does_not_say_is_as_in_the_default() -> None:
    assert parse_recipe("") == load_recipe("default")
    assert parse_recipe('round = "nearest"\n') == load_recipe("default").with_settings(["round=nearest"])


@pytest.mark.parametrize("order", [1, -1])
def test_limits_that_belong_together_may_come_in_any_order(order: int) -> None:
    low = load_recipe().with_settings(["min-bits=2", "max-bits=3"])
    high = low.with_settings(["min-bits=5", "max-bits=6"][::order])
    assert (high.min_bits, high.max_bits) == (5, 6)
    assert (high.with_settings(["min-bits=2", "max-bits=3"][::order])) == low


def test_settings_change_one_option_and_keep_the_others() -> None:
    recipe = load_recipe().with_settings(["round.activation-order=true", "round.damping-fraction=0.5"])
    assert (recipe.round.activation_order, recipe.round.damping_fraction) == (True, 0.5)  # type: ignore[attr-defined]
    assert recipe.with_settings(["round=gptq"]) == load_recipe()


def test_formats_are_every_combination_narrowest_first() -> None:
    settings = ["min-bits=3", "max-bits=4", "group-sizes=32,64", "symmetric=true", "outliers=0,1"]
    formats = load_recipe().with_settings([*settings, "coding=fixed"]).formats("huffman")
    assert len(set(formats)) == len(formats) == 2 * 2 * 2 * 2
    assert [format.bits for format in formats] == sorted(format.bits for format in formats)
    assert AffineFormat(bits=4, group_size=32, symmetric=True, outliers=1) in formats
    assert load_recipe().with_settings(settings).formats(None) == formats


def test_entropy_formats_take_the_place_of_fixed_widths_as_far_as_they_reach() -> None:
    formats = load_recipe().with_settings(["min-bits=2"]).formats("huffman")
    coded = [format.bits for format in formats if isinstance(format, EntropyFormat)]
    assert coded == [2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0]
    assert formats[len(coded) :] == (AffineFormat(bits=7, group_size=128), AffineFormat(bits=8, group_size=128))
    narrow = load_recipe().with_settings(["min-bits=2", "max-bits=3"])
    assert [str(format) for format in narrow.formats("huffman")] == [
        "entropy{bits=2}",
        "entropy{bits=2.5}",
        "entropy{bits=3}",
    ]


def test_options_of_fixed_widths_are_idle_where_codes_are_stored_by_their_entropy() -> None:
    recipe = load_recipe().with_settings(["group-sizes=64", "symmetric=true"])
    assert recipe.idle_options("huffman") == ("group-sizes", "symmetric")
    assert recipe.idle_options(None) == ()
    assert recipe.with_settings(["coding=fixed"]).idle_options("huffman") == ()
    assert load_recipe().idle_options("huffman") == ()


@given(recipes(), st.sampled_from([None, "huffman", "rice"]))
def test_every_recipe_offers_distinct_formats_and_fixed_widths_begin_at_two_bits(
    recipe: Recipe, code: EntropyCode | None
) -> None:
    if recipe.max_bits < 2 and (code is None or recipe.coding == "fixed"):
        with pytest.raises(RecipeError, match="fixed widths begin at 2"):
            recipe.formats(code)
        return
    formats = recipe.formats(code)
    assert formats
    assert len(set(formats)) == len(formats)
    assert [format.bits for format in formats] == sorted(format.bits for format in formats)
    fixed = [format for format in formats if isinstance(format, AffineFormat)]
    assert all(max(2, recipe.min_bits) <= format.bits <= recipe.max_bits for format in fixed)
    assert len(fixed) == len(formats) or (code is not None and recipe.coding != "fixed")
    assert all(format.code == code for format in formats if isinstance(format, EntropyFormat))
    assert all(recipe.min_bits <= format.bits <= recipe.max_bits for format in formats)


def test_fixed_widths_of_one_bit_alone_are_refused() -> None:
    narrow = load_recipe().with_settings(["coding=fixed", "max-bits=1"])
    with pytest.raises(RecipeError, match="fixed widths begin at 2"):
        narrow.formats("huffman")


def test_codes_of_one_kind_are_offered() -> None:
    formats = load_recipe().formats("rice")
    assert {format.code for format in formats if isinstance(format, EntropyFormat)} == {"rice"}
    assert len(formats) == 11 + 2


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("round", "stage.option=value"),
        ("round=rond", "There are: gptq"),
        ("round.damping=1", "damping-fraction"),
        ("round.damping-fraction=much", "expected float"),
        ("round.activation-order=maybe", "expected bool"),
        ("pack.width=3", "no stage 'pack'"),
        ("colour=blue", "no option 'colour'"),
        ("min-bits=0", "1 <= min-bits"),
        ("coding=huffman", "auto or entropy or fixed"),
        ("min-bits=6.5", "expected int"),
        ("max-bits=9", "max-bits <= 8"),
        ("scope=all", "file or linear"),
        ("group-sizes=", "at least one group size"),
        ("round=gptq{", "closing brace"),
    ],
)
def test_a_bad_setting_is_refused_with_what_was_expected(setting: str, part: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe().with_settings([setting])
    assert part in str(caught.value)


def test_limits_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(RecipeError, match="min-bits 5 and max-bits 4"):
        load_recipe().with_settings(["min-bits=5", "max-bits=4"])


@pytest.mark.parametrize(
    ("toml", "part"),
    [
        ("min-bits = ", "no TOML"),
        ("bits = 3", "min-bits"),
        ("min-bits = '3'", "whole number"),
        ("min-bits = true", "whole number"),
        ("symmetric = 1", "true or false"),
        ("group-sizes = 64", "a list"),
        ("group-sizes = ['a']", "whole number"),
        ("scope = 'all'", "file or linear"),
        ("coding = 'none'", "auto or entropy or fixed"),
        ("guide = 3", "text of a stage"),
        ("guide = 'gide'", "There are:"),
    ],
)
def test_a_bad_file_is_refused_by_name_with_what_was_expected(toml: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(toml)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    assert part in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_unknown_name_lists_the_recipes() -> None:
    with pytest.raises(RecipeError, match="default, nearest, gptq"):
        load_recipe("bset")


def test_impossible_group_sizes_are_refused_where_the_formats_are_made() -> None:
    with pytest.raises(FormatError, match="group size"):
        assert load_recipe().with_settings(["group-sizes=-5"]).formats(None)


@given(st.text(max_size=30))
def test_no_text_at_all_breaks_the_parser(text: str) -> None:
    try:
        load_recipe().with_settings([text])
    except GuidedQError:
        return
    assert "=" in text
