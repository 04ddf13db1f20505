"""Choosing sites that are computed in integers, from the command to the file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from integer_networks import convolutions

import guidedq
from guidedq.driver.activation_choice import integer_options, with_integers
from guidedq.driver.evidence import gather
from guidedq.errors import GuidedQError
from guidedq.request import make_job

SETTINGS = ("guide.sequences=16", "coding=fixed", "tune=none", "correct=none")


@pytest.fixture
def job_of(tmp_path):
    """Makes jobs on the network of convolutions, which share a workspace."""
    convolutions(tmp_path)
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=generator.normal(size=(80, 3, 6, 6)).astype(np.float32))

    def made(*settings, activations="static", **more):
        return {
            "model": tmp_path / "source.onnx",
            "data": tmp_path / "data.npz",
            "activations": activations,
            "settings": (*SETTINGS, *settings),
            "samples": 24,
            "workspace": tmp_path / "workspace",
            **more,
        }

    return made


def chosen(options, limit=10_000):
    job = make_job(**options)
    return with_integers(job, gather(job, job.footprint()), limit)


def weight_costs(options):
    job = make_job(**options)
    found = integer_options(job, gather(job, job.footprint()))
    assert found is not None
    return found.weight_costs


def test_sites_above_the_share_stay_in_float(job_of):
    everything, nothing = chosen(job_of("activation-budget=1.0")), chosen(job_of("activation-budget=0.0"))
    assert list(everything.rounding.rows) == ["w1", "w2", "w3"]
    assert everything.rounding_loss > 0
    assert (nothing.rounding.rows, nothing.rounding.values, nothing.rounding.inputs) == ({}, {}, {})
    assert nothing.rounding_loss == 0
    assert "0 of 3 sites" in nothing.notices[0]
    some = chosen(job_of("activation-budget=0.3"))
    assert 0 < len(some.rounding.rows) < 3
    assert some.rounding_loss < everything.rounding_loss
    assert "stays in float" in some.notices[0]


def test_all_levels_of_integer_weights_are_forecast_to_lose_less(job_of):
    words = [job_of("activation-budget=1.0", f"reduce-range={word}") for word in ("true", "false")]
    reduced, whole = map(chosen, words)
    assert (reduced.rounding.largest_code, whole.rounding.largest_code) == (64, 127)
    assert whole.rounding.rows == reduced.rounding.rows
    narrow, wide = (weight_costs(options) for options in words)
    for name in ("w1", "w2"):  # of the few weights of w3 the errors add up by chance
        assert wide[name] < 0.6 * narrow[name]


def test_the_range_is_chosen_as_the_recipe_says(job_of):
    guided, widest = (chosen(job_of("activation-budget=1.0", f"range={name}")) for name in ("guided", "min-max"))
    assert guided.rounding.values.keys() == widest.rounding.values.keys()
    assert guided.rounding_loss < widest.rounding_loss
    for name, grid in guided.rounding.values.items():
        assert grid.high <= widest.rounding.values[name].high


def test_without_activations_nothing_is_measured_or_rounded(job_of):
    evidence = chosen(job_of(activations="none"))
    assert (evidence.rounding_loss, evidence.notices) == (0.0, ())


def test_a_compiled_file_has_integer_kernels_and_a_forecast_that_counts_them(job_of, tmp_path):
    report = guidedq.compile(**job_of("activation-budget=1.0"), budget="48bits", out=tmp_path / "out").report
    assert any("3 of 3 sites are computed in integers" in notice for notice in report.notices)
    assert any("2 x QLinearConv" in notice for notice in report.notices)
    operators = {node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}
    assert "Round" in operators
    assert report.forecast.raw_kl > chosen(job_of("activation-budget=1.0")).rounding_loss > 0
    assert 0.3 < report.measured.kl / report.forecast.kl < 3


def test_activations_of_another_backend_are_refused(tmp_path):
    with pytest.raises(GuidedQError, match="activations=static: expected none or int8"):
        make_job(convolutions(tmp_path), backend="torch", activations="static")
