"""Formats and integer sites chosen for their time, by made-up machines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from integer_networks import convolutions, products

import guidedq
from guidedq.artifacts.profile import Kernel, Profile
from guidedq.artifacts.report import read_report
from guidedq.backends.onnx import stopwatch, timer
from guidedq.driver.evidence import gather
from guidedq.driver.joint_choice import with_choice
from guidedq.driver.profiling import kernels_of
from guidedq.errors import BudgetError, ProfileError
from guidedq.request import make_job

SETTINGS = ("guide.sequences=16", "coding=fixed", "tune=none", "correct=none")
RATES = {"Conv": 1.0, "MatMul": 1.0, "QLinearConv": 4.0, "MatMulIntegerToFloat": 4.0, "QuantizeLinear": 4.0}
RATES |= {f"MatMulNBits{{bits={bits} block-size=32 accuracy-level=4}}": 8.0 / bits for bits in (2, 4, 8)}
RATES |= {f"MatMulNBits{{bits={bits} block-size=64 accuracy-level=4}}": 8.0 / bits for bits in (2, 4, 8)}
REST_SECONDS = 100.0


@pytest.fixture
def evidence_of(tmp_path):
    """A job on a network, and what it is decided on, given how many multiplications a second each operator does."""

    def made(network=convolutions, rates=RATES, limit=10_000, **more):
        model = network(tmp_path)
        shape = (80, 3, 6, 6) if network is convolutions else (80, 5, 16)
        np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=shape).astype(np.float32))
        kernels = {Kernel(operator=name, tokens=1, columns=1, rows=1): 1 / rate for name, rate in rates.items()}
        profile = Profile(runtime="r", processor="made up", threads=1, seconds=kernels)
        given = {
            "data": tmp_path / "data.npz",
            "samples": 24,
            "workspace": tmp_path / "workspace",
            "settings": SETTINGS,
        }
        job = make_job(model, objective="latency", profile=_written(tmp_path, profile), **(given | more))
        evidence = gather(job, job.footprint())
        sites, _ = kernels_of(job, evidence.calibration, evidence.footprint)
        whole = REST_SECONDS + sum(kernel.work for site in sites.values() for kernel in site.original)
        job = replace(job, latency=replace(job.latency, profile=replace(profile, models={model.digest: whole})))
        return job, with_choice(job, evidence, limit)

    return made


def _written(folder, profile):
    profile.write(folder / "machine.toml")
    return folder / "machine.toml"


def test_sites_are_computed_in_integers_only_where_that_is_faster(evidence_of):
    _, fast = evidence_of(activations="static", settings=(*SETTINGS, "speed-budget=1e9"))
    _, slow = evidence_of(rates=RATES | {"QLinearConv": 0.5, "MatMulIntegerToFloat": 0.5}, activations="static")
    assert set(fast.rounding.rows) == {"w1", "w2", "w3"} == set(fast.timing.integers)
    assert set(slow.rounding.rows) == set() == set(slow.timing.integers)
    assert fast.rounding_loss > slow.rounding_loss == 0


def test_the_fastest_loses_no_more_than_its_share(evidence_of):
    losses = {}
    for share in (0.0, 0.3, 1e9):
        job, evidence = evidence_of(activations="static", settings=(*SETTINGS, f"speed-budget={share}"))
        (allocation,) = job.recipe.allocate.allocate(
            job.model.graph, evidence.distortions, evidence.footprint, [10_000]
        )
        losses[share] = allocation.distortion + evidence.rounding_loss
    assert losses[0.0] <= losses[0.3] <= 1.3 * losses[0.0]
    assert losses[0.3] < losses[1e9]


def test_a_bound_on_the_time_is_kept_at_the_least_loss(evidence_of):
    bounds, losses = (0.9, 0.45), []
    for bound in bounds:
        _, evidence = evidence_of(activations="static", max_latency=bound)
        timing, words = evidence.timing, evidence.notices[-1]
        predicted = float(words.partition(": ")[2].split()[0])
        assert predicted <= bound
        assert f"at most {bound:g} times" in words
        assert timing.price > 0
        losses.append(evidence.rounding_loss)
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


def test_a_bound_that_nothing_keeps_is_refused_with_the_least_that_can_be(evidence_of):
    with pytest.raises(BudgetError, match=r"0\.1x cannot be kept: the fastest .* 0\.\d+ times .*Raise it\."):
        evidence_of(activations="static", max_latency=0.1)
    with pytest.raises(BudgetError, match="or let sites be computed in integers: --activations"):
        evidence_of(max_latency=0.1)


def test_formats_are_narrower_where_wide_ones_take_longer(evidence_of):
    fused = (*SETTINGS, "group-sizes=32")

    def widths(**more):
        job, evidence = evidence_of(products, settings=fused, limit=20_000, **more)
        (allocation,) = job.recipe.allocate.allocate(
            job.model.graph, evidence.timing.priced(evidence.distortions), evidence.footprint, [20_000]
        )
        return [format.bits for site in allocation.sites.values() for format in site.used]

    assert widths(max_latency=10.0) == [16, 16, 16]
    assert max(widths(max_latency=0.5)[:2]) <= 4


def test_the_profile_must_fit_what_is_asked(evidence_of):
    with pytest.raises(ProfileError, match=r"measured with --threads 1, and 2 is asked for\. Leave --threads out"):
        evidence_of(activations="static", max_latency="0.5x", threads=2)
    job, _ = evidence_of(activations="static")
    stranger = Profile(runtime="r", processor="made up", threads=1, seconds={})
    job = replace(job, latency=replace(job.latency, profile=stranger))
    with pytest.raises(ProfileError, match="knows nothing of"):
        with_choice(job, gather(job, job.footprint()), 10_000)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"max_latency": "fast"}, "such as 0.6x"),
        ({"max_latency": "0x"}, "above 0"),
        ({"objective": "speed"}, "expected size or latency"),
        ({"profile": "none.toml", "objective": "latency"}, "Make one with `guidedq profile`"),
        ({"profile": __file__}, "pass --objective latency"),
    ],
)
def test_what_cannot_be_asked_of_latency_is_refused_at_once(asked, said):
    with pytest.raises(ProfileError, match=said):
        make_job("no model", **asked)


def test_a_compile_measures_its_kernels_and_reports_what_they_foretold(tmp_path, monkeypatch):
    monkeypatch.setattr(stopwatch, "MOST_ROUNDS", stopwatch.FEWEST_ROUNDS)
    monkeypatch.setattr(timer, "PASSES", 1)
    convolutions(tmp_path)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(80, 3, 6, 6)).astype(np.float32))
    options = {"data": tmp_path / "data.npz", "samples": 24, "workspace": tmp_path / "workspace", "settings": SETTINGS}
    compiled = guidedq.compile(
        tmp_path / "source.onnx",
        budget="48bits",
        activations="static",
        objective="latency",
        out=tmp_path / "out",
        **options,
    )
    latency = compiled.report.latency
    assert (latency.asked, latency.threads) == ("fastest", 1)
    assert latency.measured_ratio == pytest.approx(latency.seconds / latency.original_seconds)
    assert 0 < latency.predicted_ratio < 10
    assert read_report(tmp_path / "out").latency == latency
    assert any(notice.startswith("latency, as fast as its loss allows") for notice in compiled.report.notices)
