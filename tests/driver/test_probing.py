"""A decision that is probed itself: its forecast rests on its own measurement, which is made once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_transformers import save_tiny_transformer

from guidedq.budget import parse_budget
from guidedq.driver import probing
from guidedq.driver.decision import decide, limit_of
from guidedq.driver.evidence import gather
from guidedq.driver.probing import probed, probed_itself
from guidedq.request import make_job


def job_of(root):
    generator = np.random.default_rng(0)
    np.savez(root / "tokens.npz", input_ids=generator.integers(3, 40, (64, 16)))
    return make_job(
        save_tiny_transformer("llama", root / "model"),
        data=root / "tokens.npz",
        effort="quick",
        workspace=root / "workspace",
    )


def test_forecast_of_what_is_probed_itself_is_its_own_measurement_and_its_interval_no_wider(tmp_path, monkeypatch):
    job = job_of(tmp_path)
    evidence = gather(job, job.footprint())
    probes = probed(job, evidence)
    (first,) = decide(job, evidence, probes, [limit_of(parse_budget("4.2bits"), job, evidence.footprint)])
    itself = probed_itself(job, evidence, first)
    (own,) = (probe for probe in itself.probes if probe not in first.probes)
    assert own.counted_bytes == first.allocation.bytes
    assert itself.allocation is first.allocation
    assert itself.forecast.kl == pytest.approx(own.measured.kl, rel=0.05)
    before, after = (math.log(f.kl_high / f.kl_low) for f in (first.forecast, itself.forecast))
    assert after <= 1.02 * before
    monkeypatch.setattr(probing, "rounded", None)  # a second time nothing is rounded
    assert probed_itself(job, evidence, first).forecast == itself.forecast
    doubled = probed_itself(job, evidence, first, correction=2.0)
    assert doubled.forecast.kl == pytest.approx(2 * itself.forecast.kl, rel=0.1)
