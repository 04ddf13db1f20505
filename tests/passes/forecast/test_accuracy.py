"""The forecast of the accuracy from regret and labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_calibration import probe

from guidedq.artifacts.forecast import Probe
from guidedq.passes.forecast.accuracy import accuracy_gain
from guidedq.passes.forecast.calibration import calibrated


def labelled(raw: float, kl: float, regret: float, drop: float, *, samples: int = 400, seed: int = 0) -> Probe:
    """A probe whose choices cost `drop` of the accuracy where `regret` was expected."""
    generator = np.random.default_rng(seed)
    flips = generator.choice([-1.0, 0.0, 1.0], samples, p=[0.02, 0.96, 0.02])
    drops = drop + flips - flips.mean()
    plain = probe(raw, kl)
    measured = replace(
        plain.measured,
        units=samples,
        kl_by_sample=(kl,) * samples,
        loss_increase_by_sample=(kl,) * samples,
        accuracy_before=0.8,
        accuracy_after=0.8 - drop,
        regret_by_sample=(regret,) * samples,
        accuracy_drop_by_sample=tuple(drops.tolist()),
    )
    return replace(plain, measured=measured)


def test_without_labels_there_is_none() -> None:
    found = calibrated([0.1] * 16, [probe(0.1, 0.1)], 1000, seed=0)
    assert (found.accuracy_drop, found.accuracy_drop_low, found.accuracy_drop_high) == (None, None, None)


def test_it_falls_with_the_divergence_and_its_interval_with_more_data() -> None:
    probes = [labelled(0.1, 0.1, 0.05, 0.05), labelled(0.01, 0.01, 0.005, 0.005, seed=1)]
    few, many = (calibrated([0.03] * 16, probes, units, seed=0) for units in (200, 20_000))
    assert many.accuracy_drop == pytest.approx(0.015, rel=0.15)
    for found in (few, many):
        assert found.accuracy_drop_low is not None and found.accuracy_drop_high is not None
        assert found.accuracy_drop_low < many.accuracy_drop < found.accuracy_drop_high
    assert few.accuracy_drop_high - few.accuracy_drop_low > 2 * (many.accuracy_drop_high - many.accuracy_drop_low)


def test_labels_that_are_mostly_noise_leave_the_regret_to_decide() -> None:
    gain = accuracy_gain(0.01, [labelled(0.01, 0.01, 0.004, -0.004)])
    assert gain is not None
    assert gain.ratio == pytest.approx(0.4, rel=0.1)


def test_a_probe_that_changed_no_choice_does_not_promise_that_none_will_change() -> None:
    calm = labelled(0.001, 0.001, 0.0, 0.0)
    measured = replace(calm.measured, accuracy_drop_by_sample=(0.0,) * 400)
    found = calibrated([0.001] * 16, [replace(calm, measured=measured)], 1000, seed=0)
    assert found.accuracy_drop == pytest.approx(0.0, abs=1e-9)
    assert found.accuracy_drop_high is not None
    assert 0.001 < found.accuracy_drop_high < 0.02
