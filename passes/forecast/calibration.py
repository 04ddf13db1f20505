"""Calibrate raw predictions by probes: a line between their logarithms, and an interval by bootstrap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from guidedq.artifacts.forecast import Forecast, Probe

REPLICATES = 2000
"""Bootstrap replicates: the 5% and 95% quantiles are then good to a percent or so of the spread."""
INTERVAL = (5.0, 95.0)
LINE_ERROR = 0.06
"""Standard deviation of what two probes leave unexplained between and around them, in log units of divergence: the
line's own error as `benchmarks/forecast.py` measures it at 3 to 6 bits."""
STEEPEST_SLOPE = 1.5
"""The divergence is quadratic in the error, as the raw prediction is, up to saturation and higher orders: slopes beyond
1.5 or below its inverse come from noise in the probes."""
SMALLEST = 1e-12


def calibrated(raw: Sequence[float], probes: Sequence[Probe], evaluation_units: int, *, seed: int) -> Forecast:
    """Fit `log measured = c0 + c1 log raw` through the probes and read the allocation's divergence from it.

    Args:
        raw: Uncalibrated divergence of the allocation, for each kept sequence.
        probes: Measured allocations; with none the raw mean is the forecast, with one the slope is 1.
        evaluation_units: Tokens or samples that the loss will be measured on: fewer make the measurement noisier.
        seed: Seeds the bootstrap.
    """
    generator = np.random.default_rng(seed)
    target = np.asarray(raw, dtype=np.float64)
    sequences = [np.asarray(probe.raw_kl_by_sequence, dtype=np.float64) for probe in probes]
    measured = [np.asarray(probe.measured.kl_by_sample, dtype=np.float64) for probe in probes]
    kl = _predict(_mean(target), [_mean(values) for values in sequences], [probe.measured.kl for probe in probes])
    replicates = np.empty(REPLICATES)
    for index in range(REPLICATES):
        replicates[index] = _replicate(generator, target, sequences, measured, [probe.measured.kl for probe in probes])
    noise = np.hypot(LINE_ERROR, _evaluation_noise(probes, evaluation_units))
    spread = np.log(np.maximum(replicates, SMALLEST)) + generator.normal(0.0, noise, REPLICATES)
    low, high = np.exp(np.percentile(spread, INTERVAL))
    low, high = min(float(low), kl), max(float(high), kl)
    gain = _loss_per_divergence(kl, probes)
    increases = sorted((gain * low, gain * high))
    return Forecast(
        kl=kl,
        kl_low=low,
        kl_high=high,
        loss_increase=gain * kl,
        loss_increase_low=increases[0],
        loss_increase_high=increases[1],
        raw_kl=_mean(target),
    )


def _replicate(
    generator: np.random.Generator,
    target: NDArray[np.float64],
    sequences: Sequence[NDArray[np.float64]],
    measured: Sequence[NDArray[np.float64]],
    kl: Sequence[float],
) -> float:
    """One bootstrap replicate: the same drawn sequences for the target and every probe, so that common noise cancels."""
    drawn = generator.integers(0, len(target), len(target))
    raws = [_mean(values[drawn]) if len(values) == len(target) else _mean(values) for values in sequences]
    seen: list[float] = []
    for samples, value in zip(measured, kl, strict=True):
        part = generator.integers(0, len(samples), len(samples)) if len(samples) else np.zeros(0, dtype=np.int64)
        scale = _mean(samples[part]) / max(_mean(samples), SMALLEST) if len(samples) else 1.0
        seen.append(value * scale)
    return _predict(_mean(target[drawn]), raws, seen)


def _predict(raw: float, raws: Sequence[float], measured: Sequence[float]) -> float:
    if not raws:
        return raw
    x, y = np.log(np.maximum(raws, SMALLEST)), np.log(np.maximum(measured, SMALLEST))
    slope = 1.0
    if len(raws) > 1 and float(np.ptp(x)) > np.log(1.1):
        slope = float(np.clip(np.polyfit(x, y, 1)[0], 1 / STEEPEST_SLOPE, STEEPEST_SLOPE))
    weights = 1.0 / (0.1 + np.abs(x - np.log(max(raw, SMALLEST))))
    intercept = float(np.average(y - slope * x, weights=weights))
    return float(np.exp(intercept + slope * np.log(max(raw, SMALLEST))))


def _loss_per_divergence(kl: float, probes: Sequence[Probe]) -> float:
    """Loss increase on data per unit of divergence: the probes' own ratio, the nearer probe counting more."""
    ratios = [probe.measured.loss_increase / probe.measured.kl for probe in probes if probe.measured.kl > SMALLEST]
    if not ratios:
        return 1.0
    distances = [abs(np.log(probe.measured.kl / max(kl, SMALLEST))) for probe in probes if probe.measured.kl > SMALLEST]
    return float(np.average(ratios, weights=[1.0 / (0.1 + distance) for distance in distances]))


def _evaluation_noise(probes: Sequence[Probe], evaluation_units: int) -> float:
    """Relative standard error of a divergence measured on so many tokens or samples, from the probes' spread."""
    found: list[float] = []
    for probe in probes:
        values = np.asarray(probe.measured.kl_by_sample)
        if len(values) > 1 and values.mean() > SMALLEST:
            per_unit = values.std(ddof=1) / values.mean() * np.sqrt(probe.measured.units / len(values))
            found.append(float(per_unit / np.sqrt(max(evaluation_units, 1))))
    return float(np.mean(found)) if found else 0.0


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else 0.0
