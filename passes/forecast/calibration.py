"""Calibrate raw predictions by probes: the ratio of measured to raw divergence, at any size, by kriging."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student_t

from guidedq.artifacts.forecast import Forecast, Probe

from .accuracy import accuracy_gain
from .loss import SMALLEST, TREMBLE, loss_gain

REPLICATES = 2000
"""Bootstrap replicates: the 5% and 95% quantiles are then good to a percent or so of the spread."""
INTERVAL = (5.0, 95.0)
LEVEL_SPREAD = 0.7
"""Standard deviation, over models, of the logarithm of the ratio of measured to raw divergence: a factor of two."""
GROWTH, GROWTH_SPREAD = 0.5, 0.5
"""Of that logarithm over `log(1 + raw)`: mean and standard deviation over models. Small errors add exactly a quadratic
form, which the raw prediction is, so the ratio is constant there; large ones add higher orders (demo: .7) or saturate
(ResNet-20: below 0)."""
LOCAL_SPREAD, LOCAL_REACH = 0.08, 1.0
"""What allocations of nearly one size share beyond this, and the log distance of raw predictions at which a third of it
is left."""
OWN_SPREAD = 0.05
"""What an allocation shares with no other: the noise of its own raw prediction."""
UNUSUAL = {1.0: 0.9, 4.0: 0.09, 16.0: 0.01}
"""How many times as much allocations of a model may differ among themselves, and for what share of models. Most raw
predictions are off alike; those of PP-OCRv4's detector are off by a factor of 1.3 for some allocations, of 6 for
others."""
SAME = 1e-9
"""Log distance of raw predictions below which they are of one allocation."""
DRAW_SPREAD = 0.04
"""What two draws of samples differ by beyond what resampling them tells: sequences of one document are alike, and two
texts of one kind are not (the demo's checkpoints: by .00 to .09, alike for all sizes of a draw)."""
UNIT_SPREAD = 2.0
"""Standard deviation of a token's divergence over its mean, believed where there is one sample (of the demo's
checkpoints, Whisper's and SmolLM2's tokens, by their sequences: 1.3 to 3.4)."""
MOST_STUDENT = 2.0
"""By no more is an interval widened because the spread itself is known from few samples."""
Values = NDArray[np.float64]


def calibrated(raw: Sequence[float], probes: Sequence[Probe], evaluation_units: int, *, seed: int) -> Forecast:
    """Read the allocation's divergence from its raw prediction and from the ratios of measured to raw at the probes.

    The logarithm of the ratio is a level, a growth with the divergence, and what neighbours in size share, each with a
    spread known beforehand, and the probes' ratios are as noisy as their samples let them be, each in its own way as
    far as the samples tell (what an image loses in ResNet-20 at 3 bits says little of what it loses at 4); the best
    linear prediction from the probes, and that prediction's variance, are those of kriging (Matheron 1963). Without
    probes the raw mean is the forecast.

    The interval is a bootstrap: sequences are drawn alike for the target and all probes, so that the noise they share
    cancels; the probes' samples are drawn alike for all probes, for a sample that is hard for one is so for all; the
    prediction's own error and the noise of the evaluation are added.

    Args:
        raw: Uncalibrated divergence of the allocation, for each kept sequence.
        probes: Measured allocations.
        evaluation_units: Tokens or samples that the loss will be measured on: fewer make the measurement noisier.
        seed: Seeds the bootstrap.
    """
    generator = np.random.default_rng(seed)
    target = np.asarray(raw, dtype=np.float64)
    raws = [np.asarray(probe.raw_kl_by_sequence, dtype=np.float64) for probe in probes]
    samples = _resampled(generator, probes)
    means, found = [_column(values.mean()) for values in raws], [_column(probe.measured.kl) for probe in probes]
    rule = _kriging(float(target.mean()), means, found, _noise_covariance(samples))
    kl = float(rule.divergence(_column(target.mean()), means, found)[0])
    drawn = generator.integers(0, len(target), (REPLICATES, len(target)))
    replicates = rule.divergence(
        target[drawn].mean(1),
        [
            values[drawn].mean(1) if len(values) == len(target) else np.full(REPLICATES, values.mean())
            for values in raws
        ],
        samples,
    )
    noise = math.hypot(rule.error, _evaluation_noise(probes, evaluation_units), DRAW_SPREAD)
    spread = np.log(np.maximum(replicates, SMALLEST)) + generator.normal(0.0, noise, REPLICATES)
    low, high = (float(bound) for bound in np.exp(np.percentile(spread, INTERVAL)))
    low, high = min(low, kl), max(high, kl)
    gain = loss_gain(kl, probes)
    expected = gain.ratio * kl
    increases = np.percentile(gain.increases(np.exp(spread), evaluation_units, generator), INTERVAL)
    accuracy = accuracy_gain(kl, probes)
    drop = None if accuracy is None else accuracy.ratio * kl
    drops = None if accuracy is None else accuracy.increases(np.exp(spread), evaluation_units, generator)
    drop_low, drop_high = (None, None) if drops is None else map(float, np.percentile(drops, INTERVAL))
    return Forecast(
        kl=kl,
        kl_low=low,
        kl_high=high,
        loss_increase=expected,
        loss_increase_low=min(float(increases[0]), expected),
        loss_increase_high=max(float(increases[1]), expected),
        raw_kl=float(target.mean()),
        accuracy_drop=drop,
        accuracy_drop_low=drop_low,
        accuracy_drop_high=drop_high,
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Kriging:
    """A linear rule for one target: log ratio = mean + weights . (the probes' log ratios - their means).

    Attributes:
        mean: What is believed of the target's log ratio without probes.
        means: The same of the probes'.
        weights: Of the probes.
        error: Standard deviation of the prediction.
    """

    mean: float
    means: Values
    weights: Values
    error: float

    def divergence(self, raw: Values, raws: Sequence[Values], measured: Sequence[Values]) -> Values:
        """At `raw`, for every replicate."""
        if not raws:
            return raw
        ratios = np.stack([_log(found) - _log(predicted) for found, predicted in zip(measured, raws, strict=True)])
        return raw * np.exp(self.mean + self.weights @ (ratios - self.means[:, None]))


def _kriging(raw: float, raws: Sequence[Values], measured: Sequence[Values], noise: Values) -> _Kriging:
    """The rule for a target of raw divergence `raw` from probes at `raws`, whose log ratios have this noise.

    Of the spreads that a model may have, it takes the likeliest after the probes have spoken. Its `error` is what
    remains were the probes measured without noise: the bootstrap adds that.
    """
    places = np.concatenate([_column(raw), *raws])
    means = GROWTH * np.log1p(places)
    residuals = np.array([float(_log(f)[0] - _log(r)[0]) for f, r in zip(measured, raws, strict=True)]) - means[1:]

    def likelihood(covariance: Values, share: float) -> float:
        heard = covariance[1:, 1:] + noise
        return math.log(share) - 0.5 * float(
            residuals @ np.linalg.solve(heard, residuals) + np.linalg.slogdet(heard)[1]
        )

    believed = [(_covariance(places, times), share) for times, share in UNUSUAL.items()]
    covariance = max(believed, key=lambda one: likelihood(*one))[0]
    among, ahead = covariance[1:, 1:], covariance[1:, 0]
    weights: Values = np.linalg.solve(among + noise, ahead).astype(np.float64)
    variance = covariance[0, 0] - 2 * weights @ ahead + weights @ among @ weights
    return _Kriging(mean=float(means[0]), means=means[1:], weights=weights, error=float(np.sqrt(max(variance, 0.0))))


def _covariance(places: Values, times: float) -> Values:
    """Of the log ratios at these raw divergences, of allocations that differ so many times as much as usual."""
    size, growth = _log(places), np.log1p(places)
    apart = np.abs(size[:, None] - size)
    own = LOCAL_SPREAD**2 * np.exp(-apart / LOCAL_REACH) + OWN_SPREAD**2 * (apart < SAME)
    tremble = TREMBLE**2 * np.eye(len(places))
    return LEVEL_SPREAD**2 + GROWTH_SPREAD**2 * np.outer(growth, growth) + times**2 * own + tremble


def _resampled(generator: np.random.Generator, probes: Sequence[Probe]) -> list[Values]:
    """The probes' measured divergences over bootstrap draws of the samples, alike for probes of as many.

    Few samples hardly tell their own spread: the draws are widened as Student's distribution is wider than the normal.
    One sample tells none: its tokens are believed to be as different as others' are.
    """
    draws: dict[int, NDArray[np.int64]] = {}
    single = generator.normal(0.0, UNIT_SPREAD, REPLICATES)
    found: list[Values] = []
    for probe in probes:
        samples = np.asarray(probe.measured.kl_by_sample, dtype=np.float64)
        count = len(samples)
        if count < 2 or samples.mean() <= SMALLEST:
            found.append(probe.measured.kl * np.exp(single / np.sqrt(probe.measured.units)))
            continue
        if count not in draws:
            draws[count] = generator.integers(0, count, (REPLICATES, count))
        relative = np.maximum(samples[draws[count]].mean(1) / samples.mean(), SMALLEST)
        found.append(probe.measured.kl * relative ** _student(count))
    return found


def _student(count: int) -> float:
    """By how much the 90% interval of a mean of so many samples is wider than their bootstrap says."""
    wider = float(student_t.ppf(0.95, count - 1) / norm.ppf(0.95)) * math.sqrt(count / (count - 1))
    return min(wider, MOST_STUDENT)


def _noise_covariance(samples: Sequence[Values]) -> Values:
    """Of the logarithms of the probes' measured divergences, over bootstrap draws."""
    if not samples:
        return np.zeros((0, 0))
    covariance = np.atleast_2d(np.cov(np.stack([_log(values) for values in samples])))
    return np.nan_to_num(covariance, nan=0.0, posinf=0.0, neginf=0.0)


def _column(value: float) -> Values:
    return np.asarray([value], dtype=np.float64)


def _log(values: Values) -> Values:
    return np.log(np.maximum(values, SMALLEST))


def _evaluation_noise(probes: Sequence[Probe], evaluation_units: int) -> float:
    """Relative standard error of a divergence measured on so many tokens or samples, from the probes' spread."""
    found: list[float] = []
    for probe in probes:
        values = np.asarray(probe.measured.kl_by_sample)
        if len(values) > 1 and values.mean() > SMALLEST:
            per_unit = values.std(ddof=1) / values.mean() * np.sqrt(probe.measured.units / len(values))
            found.append(float(per_unit / np.sqrt(max(evaluation_units, 1))))
        elif probe.measured.units > 1:
            found.append(UNIT_SPREAD / math.sqrt(max(evaluation_units, 1)))
    return float(np.mean(found)) if found else 0.0
