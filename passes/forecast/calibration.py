"""Calibrate raw predictions by probes: a line between their logarithms, and an interval by bootstrap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from guidedq.artifacts.forecast import Forecast, Probe

from .accuracy import accuracy_gain
from .loss import NEAR, SMALLEST, loss_gain

REPLICATES = 2000
"""Bootstrap replicates: the 5% and 95% quantiles are then good to a percent or so of the spread."""
INTERVAL = (5.0, 95.0)
LINE_ERROR = 0.06
"""Standard deviation of what two probes leave unexplained between and around them, in log units of divergence: a first
choice, to be replaced by a measured one when the forecast is calibrated over many models."""
STEEPEST_SLOPE = 1.5
"""The divergence is quadratic in the error, as the raw prediction is, up to saturation and higher orders: slopes beyond
1.5 or below its inverse come from noise in the probes."""
APART = 0.1
"""Log distance of two probes below which their slope is noise."""
Values = NDArray[np.float64]


def calibrated(raw: Sequence[float], probes: Sequence[Probe], evaluation_units: int, *, seed: int) -> Forecast:
    """Fit `log measured = c0 + c1 log raw` through the probes and read the allocation's divergence from it.

    The interval is a bootstrap: sequences are drawn alike for the target and all probes, so that the noise they share
    cancels; the probes' samples are drawn too, and the line's own error and the noise of the evaluation are added.

    Args:
        raw: Uncalibrated divergence of the allocation, for each kept sequence.
        probes: Measured allocations; with none the raw mean is the forecast, with one the slope is 1.
        evaluation_units: Tokens or samples that the loss will be measured on: fewer make the measurement noisier.
        seed: Seeds the bootstrap.
    """
    generator = np.random.default_rng(seed)
    target = np.asarray(raw, dtype=np.float64)
    raws = [np.asarray(probe.raw_kl_by_sequence, dtype=np.float64) for probe in probes]
    measured = [probe.measured.kl for probe in probes]
    kl = float(_predict(_column(target.mean()), [_column(values.mean()) for values in raws], _columns(measured))[0])
    drawn = generator.integers(0, len(target), (REPLICATES, len(target)))
    replicates = _predict(
        target[drawn].mean(1),
        [
            values[drawn].mean(1) if len(values) == len(target) else np.full(REPLICATES, values.mean())
            for values in raws
        ],
        [_resampled(generator, probe) for probe in probes],
    )
    noise = np.hypot(LINE_ERROR, _evaluation_noise(probes, evaluation_units))
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


def _predict(raw: Values, raws: Sequence[Values], measured: Sequence[Values]) -> Values:
    """Divergence at `raw` by a line through the probes, for every replicate; a nearer probe counts more."""
    if not raws:
        return raw
    at = np.log(np.maximum(raw, SMALLEST))
    x = np.stack([np.log(np.maximum(values, SMALLEST)) for values in raws])
    y = np.stack([np.log(np.maximum(values, SMALLEST)) for values in measured])
    weights = 1.0 / (NEAR + np.abs(x - at)) ** 2
    weights /= weights.sum(0)
    centre, level = (weights * x).sum(0), (weights * y).sum(0)
    spread = (weights * (x - centre) ** 2).sum(0)
    slope = np.where(
        spread > SMALLEST, (weights * (x - centre) * (y - level)).sum(0) / np.maximum(spread, SMALLEST), 1.0
    )
    slope = np.where(np.ptp(x, axis=0) > APART, np.clip(slope, 1 / STEEPEST_SLOPE, STEEPEST_SLOPE), 1.0)
    return np.exp(level + slope * (at - centre))


def _resampled(generator: np.random.Generator, probe: Probe) -> Values:
    """The probe's measured divergence over bootstrap draws of its samples."""
    samples = np.asarray(probe.measured.kl_by_sample, dtype=np.float64)
    if len(samples) < 2 or samples.mean() <= SMALLEST:
        return np.full(REPLICATES, probe.measured.kl)
    drawn = samples[generator.integers(0, len(samples), (REPLICATES, len(samples)))].mean(1)
    return probe.measured.kl * drawn / samples.mean()


def _column(value: float) -> Values:
    return np.asarray([value], dtype=np.float64)


def _columns(values: Sequence[float]) -> list[Values]:
    return [_column(value) for value in values]


def _evaluation_noise(probes: Sequence[Probe], evaluation_units: int) -> float:
    """Relative standard error of a divergence measured on so many tokens or samples, from the probes' spread."""
    found: list[float] = []
    for probe in probes:
        values = np.asarray(probe.measured.kl_by_sample)
        if len(values) > 1 and values.mean() > SMALLEST:
            per_unit = values.std(ddof=1) / values.mean() * np.sqrt(probe.measured.units / len(values))
            found.append(float(per_unit / np.sqrt(max(evaluation_units, 1))))
    return float(np.mean(found)) if found else 0.0
