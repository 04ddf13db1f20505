from __future__ import annotations

import pytest

from guidedq.errors import ModelError, RecipeError
from guidedq.ir.graph import Graph, Site, Use, UseKind, operator_graph
from guidedq.passes.rewrite import FuseRewrite, KeepRewrite, ScopeRewrite


def site(name: str, *kinds: UseKind) -> Site:
    uses = tuple(Use(operator=f"{name}.{index}", kind=kind) for index, kind in enumerate(kinds))
    return Site(name=name, shape=(4, 4), uses=uses)


def graph(*, tied: bool = False) -> Graph:
    linear, embedding = UseKind.LINEAR, UseKind.EMBEDDING
    embed = site("embed", embedding, linear) if tied else site("embed", embedding)
    blocks = [site(f"block.{index}.{part}", linear) for index in range(2) for part in ("q", "k", "out")]
    head = [] if tied else [site("head", linear)]
    sites = (embed, *blocks, site("conv", UseKind.CONVOLUTION), *head)
    return Graph(operators=operator_graph([], []), sites=sites, head="embed" if tied else "head")


@pytest.mark.parametrize("tied", [False, True])
def test_scope_linear_keeps_embeddings_and_head_and_nothing_else(tied: bool) -> None:
    before = graph(tied=tied)
    after = ScopeRewrite().rewrite(before)
    assert after.kept == ({"embed"} if tied else {"embed", "head"})
    assert not before.kept
    assert {site.name for site in after.quantizable} == {site.name for site in before.sites} - after.kept


def test_scope_linear_of_a_model_without_linear_sites_says_what_to_do() -> None:
    only = Graph(operators=operator_graph([], []), sites=(site("embed", UseKind.EMBEDDING),))
    with pytest.raises(ModelError, match="scope file"):
        ScopeRewrite().rewrite(only)


def test_patterns_keep_the_sites_that_they_match_besides_those_kept_already() -> None:
    before = graph().with_kept(frozenset({"conv"}))
    assert KeepRewrite(patterns=("block.?.q", "head")).rewrite(before).kept == {
        "conv",
        "block.0.q",
        "block.1.q",
        "head",
    }
    assert KeepRewrite().rewrite(before).kept == {"conv"}


def test_a_pattern_that_matches_nothing_is_named_with_the_sites() -> None:
    with pytest.raises(RecipeError, match=r"'Block\.\*' matches no site.*embed, block\.0\.q"):
        KeepRewrite(patterns=("head", "Block.*")).rewrite(graph())


def test_keeping_everything_is_refused() -> None:
    with pytest.raises(ModelError, match="no site to quantize"):
        KeepRewrite(patterns=("*",)).rewrite(graph())


def test_fusing_adds_groups_and_twice_is_as_once() -> None:
    first, second = ("block.0.q", "block.0.k"), ("block.1.q", "block.1.k")
    once = FuseRewrite(groups=(second,)).rewrite(graph().with_fused([first]))
    assert once.fused == (first, second)
    assert FuseRewrite(groups=(second, first)).rewrite(once).fused == once.fused


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ((("block.0.q",),), "two or more"),
        ((("block.0.q", "block.0.q"),), "two or more different"),
        ((("block.0.q", "nowhere"),), "nowhere"),
        ((("block.0.q", "block.0.k"), ("block.0.k", "head")), "in two fused groups"),
    ],
)
def test_groups_that_break_the_rules_are_refused(groups: tuple[tuple[str, ...], ...], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        FuseRewrite(groups=groups).rewrite(graph())
