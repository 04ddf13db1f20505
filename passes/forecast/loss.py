"""From divergence to loss on data: alike on average if a model is as sure as it is right, noisy on a finite sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from guidedq.artifacts.forecast import Measurement, Probe

PRIOR_SPREAD = 0.3
"""Standard deviation, over models and texts, of the ratio of loss increase to divergence around 1: what is believed of
the ratio before the probes speak."""
NEAR = 0.1
"""Log distance at which a probe counts half of what it would at the very place."""
SMALLEST = 1e-12
"""Divergences below are rounding errors of the logits."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LossGain:
    """How the loss on data answers to divergence.

    Attributes:
        ratio: Expected loss increase per divergence.
        ratio_error: Its standard deviation.
        noise: Standard deviation, at divergence 1 and for one unit, of what labels add by chance: the first-order term,
            which grows as the square root of the divergence.
        noise_power: That power, where it is another.
    """

    ratio: float = 1.0
    ratio_error: float = PRIOR_SPREAD
    noise: float = 0.0
    noise_power: float = 0.5

    def increases(
        self, divergences: NDArray[np.float64], units: int, generator: np.random.Generator
    ) -> NDArray[np.float64]:
        """Loss increases that go with these divergences when measured on so many units, drawn at random."""
        ratios = generator.normal(self.ratio, self.ratio_error, divergences.shape)
        chance = self.noise * divergences**self.noise_power / np.sqrt(max(units, 1))
        return divergences * ratios + generator.normal(0.0, 1.0, divergences.shape) * chance


def loss_gain(kl: float, probes: Sequence[Probe]) -> LossGain:
    """The ratio at a divergence of `kl`: the probes' own, drawn to 1 by the share of noise in it (James and Stein).

    The nearer probe counts more. Without probes, or samples in them, it is the prior: 1, give or take a third.
    """
    found = [(_posterior(probe.measured), probe.measured.kl) for probe in probes if probe.measured.kl > SMALLEST]
    return near_mean(kl, found) if found else LossGain()


def near_mean(kl: float, found: Sequence[tuple[LossGain, float]]) -> LossGain:
    """The mean of gains at several divergences, those near `kl` counting more."""
    weights = np.array([1.0 / (NEAR + abs(np.log(value / max(kl, SMALLEST)))) for _, value in found])
    weights /= weights.sum()
    return LossGain(
        ratio=float(weights @ [gain.ratio for gain, _ in found]),
        ratio_error=float(weights @ [gain.ratio_error for gain, _ in found]),
        noise=float(weights @ [gain.noise for gain, _ in found]),
        noise_power=found[0][0].noise_power,
    )


def _posterior(measured: Measurement) -> LossGain:
    excess = np.asarray(measured.loss_increase_by_sample) - np.asarray(measured.kl_by_sample)
    if len(excess) < 2:
        return LossGain()
    units_per_sample = measured.units / len(excess)
    noise = float(excess.std(ddof=1)) * np.sqrt(units_per_sample / measured.kl)
    error = float(excess.std(ddof=1)) / np.sqrt(len(excess)) / measured.kl
    believed = PRIOR_SPREAD**2 / (PRIOR_SPREAD**2 + error**2)
    ratio = 1.0 + believed * (measured.loss_increase / measured.kl - 1.0)
    return LossGain(ratio=ratio, ratio_error=float(np.sqrt(believed) * error), noise=float(noise))
