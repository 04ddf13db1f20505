"""Probes moved to samples on which the original is surer, or less sure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from guidedq.artifacts.forecast import Measurement, Probe
from guidedq.driver.uncertainty import LARGEST_FACTOR, Uncertainty, as_evaluated


def probe(uncertainty: np.ndarray, kl: np.ndarray) -> Probe:
    measured = Measurement(
        kl=float(kl.mean()),
        loss_before=1.0,
        loss_after=1.0 + 0.8 * float(kl.mean()),
        agreement=0.9,
        accuracy_before=0.8,
        accuracy_after=0.79,
        units=len(kl),
        kl_by_sample=tuple(kl.tolist()),
        loss_increase_by_sample=tuple((0.8 * kl).tolist()),
        regret_by_sample=(0.02,) * len(kl),
        accuracy_drop_by_sample=(0.01,) * len(kl),
        uncertainty_by_sample=tuple(uncertainty.tolist()),
    )
    return Probe(raw_kl_by_sequence=(0.1,), raw_kl=0.1, measured=measured, bytes=1, counted_bytes=1)


def unsure(impurity: float) -> Uncertainty:
    return Uncertainty(impurity=impurity, entropy=0.3, loss=0.9)


def test_what_follows_the_uncertainty_is_known_without_error_on_other_samples() -> None:
    own = np.linspace(0.0, 0.4, 50)
    moved = as_evaluated(probe(own, 0.5 * own), unsure(0.3)).measured
    assert type(moved.kl) is float
    assert moved.kl == pytest.approx(0.15)
    assert np.ptp(moved.kl_by_sample) == pytest.approx(0.0, abs=1e-12)
    assert moved.loss_increase == pytest.approx(0.8 * 0.15)
    assert moved.accuracy_drop == pytest.approx(1.5 * 0.01)
    assert np.mean(moved.regret_by_sample) == pytest.approx(1.5 * 0.02)


def test_what_does_not_follow_it_stays_and_so_does_its_spread() -> None:
    own = np.tile([0.1, 0.3], 30)
    kl = np.repeat([0.05, 0.15], 30)
    moved = as_evaluated(probe(own, kl), unsure(0.3)).measured
    assert moved.kl == pytest.approx(0.1)
    assert np.std(moved.kl_by_sample) == pytest.approx(np.std(kl))


def test_on_an_average_draw_its_error_is_smaller_than_that_of_the_plain_mean() -> None:
    generator = np.random.default_rng(0)
    plain, moved = [], []
    for _ in range(200):
        own = generator.beta(0.3, 2.0, 64)
        kl = own * generator.gamma(1.0, 1.0, 64)
        plain.append(kl.mean())
        moved.append(as_evaluated(probe(own, kl), unsure(0.3 / 2.3)).measured.kl)
    assert np.mean(moved) == pytest.approx(0.3 / 2.3, rel=0.05)
    assert np.std(moved) < 0.9 * np.std(plain)


def test_it_is_never_moved_far_and_not_at_all_without_distributions() -> None:
    own = np.linspace(0.0, 0.4, 50)
    given = probe(own, 0.5 * own)
    assert as_evaluated(given, unsure(1.0)).measured.kl == pytest.approx(LARGEST_FACTOR * given.measured.kl)
    assert as_evaluated(given, None) == given
    blank = replace(given, measured=replace(given.measured, uncertainty_by_sample=()))
    assert as_evaluated(blank, unsure(0.3)) == blank
