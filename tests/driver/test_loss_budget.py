"""Budgets by loss: the smallest file within them, the measurement that verifies it, and what cannot be kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import options, run, run_json, save_language_model
from onnx import numpy_helper
from test_api import save_network

from guidedq import compiler
from guidedq.artifacts.forecast import Measurement
from guidedq.budget import parse_budget
from guidedq.driver.loss_budget import SIZE_RESOLUTION, change_text, smallest_size

LOW, HIGH = 10_000, 80_000


def bound(size: int) -> float:
    """A made-up upper bound of the loss increase: halved by every 5 kB more."""
    return 2.0 ** (-size / 5000)


def smallest(largest: float) -> int | None:
    """The smallest size within a bound."""
    return smallest_size(lambda sizes: [bound(size) for size in sizes], LOW, HIGH, largest)


@pytest.mark.parametrize("size", [LOW, 11_000, 23_456, 79_000, HIGH])
def test_the_size_is_within_the_bound_and_none_a_little_smaller_is(size: int) -> None:
    found = smallest(bound(size))
    assert found is not None
    assert size <= found <= (1 + SIZE_RESOLUTION) * size


def test_beyond_both_ends_it_is_the_smallest_or_none() -> None:
    assert smallest(0.9) == LOW
    assert smallest(0.9 * bound(HIGH)) is None
    assert smallest_size(lambda sizes: [math.inf] * len(sizes), LOW, LOW, 1.0) is None


def test_all_larger_sizes_stay_within_too_where_the_bound_is_noisy() -> None:
    generator = np.random.default_rng(0)
    tried: dict[int, float] = {}

    def noisy(sizes: Sequence[int]) -> list[float]:
        return [tried.setdefault(size, bound(size) * generator.uniform(0.9, 1.1)) for size in sizes]

    found = smallest_size(noisy, LOW, HIGH, bound(30_000))
    assert found is not None
    assert tried[found] <= bound(30_000)
    assert found == pytest.approx(30_000, rel=0.05)


def test_changes_are_spelled_as_budgets_are() -> None:
    texts = ("+0.02nats", "1.02x", "-0.5%", "+0.01error")
    found = [change_text(parse_budget(text), parse_budget(text).largest_change) for text in texts]
    assert found == ["+0.0200nats", "1.0200x", "-0.50%", "+0.0100error"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, with a workspace that all tests share."""
    root = tmp_path_factory.mktemp("loss")
    save_language_model(root / "model")
    return root


@dataclass(frozen=True)
class Kept:
    """A budget, what was planned for it and what was compiled."""

    asked: str
    largest: float
    planned: dict[str, Any]
    report: dict[str, Any]


@pytest.fixture(scope="module")
def kept(folder: Path) -> Kept:
    """A loss that lies inside the model's range."""
    planned = run_json("plan", folder / "model", "--budgets", "4", *options(folder))
    largest = math.ceil(1e6 * planned["points"][0]["forecast"]["loss_increase_high"]) / 1e6
    asked = f"+{largest:.6f}nats"
    (again,) = run_json("plan", folder / "model", "--budgets", asked, *options(folder))["points"]
    result = compiled(folder, folder / "out", asked)
    assert result.exit_code == 0, result.stderr
    return Kept(asked=asked, largest=largest, planned=again, report=json.loads(result.stdout))


def compiled(folder: Path, out: Path, budget: str) -> Any:
    return run("compile", folder / "model", "--budget", budget, "--out", out, *options(folder), "--json")


def test_plan_and_compile_keep_the_bound_with_the_upper_end_of_the_interval(kept: Kept) -> None:
    assert kept.planned["forecast"]["loss_increase_high"] <= kept.largest
    assert kept.planned["linear_bits_per_weight"] == pytest.approx(4, abs=0.1)
    assert sum(part["bytes"] for part in kept.planned["parts"]) == kept.planned["bytes"]
    measured = kept.report["measured"]
    assert measured["loss_after"] - measured["loss_before"] <= kept.largest
    # compile measures what it is about to write on the probes: surer than the plan, it may take a smaller file
    assert 0.9 * kept.planned["bytes"] <= kept.report["size"]["file_bytes"] <= 1.02 * kept.planned["bytes"]
    assert kept.report["budget"]["asked"] == kept.asked
    assert kept.report["budget"]["bytes"] == sum(site["bytes"] for site in kept.report["sites"])


def missing(monkeypatch: pytest.MonkeyPatch, kept: Kept, times: int) -> None:
    """Let the first measurements of what is written be worse than they are, and the others as they should be."""
    measure, missed = compiler.measure, iter(range(times))

    def changed(*words: Any, **named: Any) -> Measurement:
        found = measure(*words, **named)
        increase = 0.5 * kept.largest if next(missed, None) is None else 1.2 * kept.largest
        return replace(found, kl=1.2 * found.kl, loss_after=found.loss_before + increase)

    monkeypatch.setattr(compiler, "measure", changed)


def test_a_file_that_misses_is_solved_again_and_comes_out_larger(
    folder: Path, kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing(monkeypatch, kept, 1)
    result = compiled(folder, tmp_path / "out", kept.asked)
    assert result.exit_code == 0, result.stderr
    assert "solving again" in result.stderr
    report = json.loads(result.stdout)
    assert report["size"]["file_bytes"] > kept.report["size"]["file_bytes"]
    assert any("solved again" in notice for notice in report["notices"])


def test_a_file_that_misses_twice_exits_with_3_and_leaves_nothing(
    folder: Path, kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing(monkeypatch, kept, 2)
    result = compiled(folder, tmp_path / "out", kept.asked)
    assert result.exit_code == 3
    assert "misses the budget" in result.stderr
    assert "Nothing was written" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_even_the_largest_file_loses_is_named(folder: Path, tmp_path: Path) -> None:
    result = compiled(folder, tmp_path / "out", "+0.000000000001nats")
    assert result.exit_code == 1
    assert "cannot be promised" in result.stderr
    assert "Ask for +" in result.stderr


def test_a_bound_on_what_the_model_or_the_data_do_not_have_is_refused(tmp_path: Path) -> None:
    network, data = save_network(tmp_path / "net.onnx"), tmp_path / "x.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32))
    for budget, words in (("1.02x", "perplexity"), ("-1%", "no labels")):
        given = ("--data", data, "--workspace", tmp_path / "workspace", "--out", tmp_path / "out")
        result = run("compile", network, "--budget", budget, *given)
        assert result.exit_code == 1
        assert words in result.stderr
        assert "probe" not in result.stderr


@pytest.fixture
def network(tmp_path: Path) -> Callable[..., list[object]]:
    """Words that compile a network of one kind of output within a budget; its data have labels if it classifies."""

    def words(output: str, budget: str) -> list[object]:
        model = save_network(tmp_path / f"{output}.onnx", output)
        inputs = np.random.default_rng(0).normal(size=(160, 64)).astype(np.float32)
        weights = [numpy_helper.to_array(tensor) for tensor in onnx.load(model).graph.initializer]
        classes = {"labels": (inputs @ weights[0] @ weights[1]).argmax(1)} if output == "y" else {}
        np.savez(tmp_path / "x.npz", x=inputs, **classes)
        given = ("--data", tmp_path / "x.npz", "--workspace", tmp_path / "workspace", "--effort", "quick")
        return ["compile", model, "--budget", budget, "--out", tmp_path / output, "--scope", "linear", *given]

    return words


def test_a_budget_of_accuracy_is_kept_where_labels_are_given(network: Callable[..., list[object]]) -> None:
    loose, tight = (run_json(*network("y", budget), "--overwrite") for budget in ("-30%", "-8%"))
    for report, largest in ((loose, 0.30), (tight, 0.08)):
        assert 0 <= report["forecast"]["accuracy_drop"] <= report["forecast"]["accuracy_drop_high"] <= largest
        assert report["measured"]["accuracy_before"] == 1.0
        assert report["measured"]["accuracy_before"] - report["measured"]["accuracy_after"] <= largest
    assert loose["size"]["linear_bits_per_weight"] < tight["size"]["linear_bits_per_weight"]


def test_a_budget_of_error_is_kept_where_the_output_is_no_distribution(network: Callable[..., list[object]]) -> None:
    loose, tight = (run_json(*network("embedding", budget), "--overwrite") for budget in ("+0.05error", "+0.002error"))
    for report, largest in ((loose, 0.05), (tight, 0.002)):
        assert report["model"]["unit"] == "relative squared error"
        assert report["forecast"]["loss_increase_high"] <= largest
        assert 0 < report["measured"]["loss_after"] <= largest
    assert loose["size"]["linear_bits_per_weight"] < tight["size"]["linear_bits_per_weight"]


@pytest.mark.parametrize(
    ("output", "budget", "hint"),
    [
        ("embedding", "+0.02nats", "ask for +0.01error"),
        ("embedding", "1.02x", "ask for +0.01error"),
        ("embedding", "-1%", "ask for +0.01error"),
        ("y", "+0.01error", "Ask for +0.02nats"),
    ],
)
def test_a_budget_in_the_unit_of_another_kind_of_output_is_refused_with_the_right_one(
    network: Callable[..., list[object]], output: str, budget: str, hint: str
) -> None:
    result = run(*network(output, budget))
    assert result.exit_code == 1
    assert hint in result.stderr
    assert "probe" not in result.stderr
