"""From divergence to loss on data: alike on average if a model is as sure as it is right, noisy on a finite sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from guidedq.artifacts.forecast import Measurement, Probe

PRIOR_SPREAD = 0.3
"""Standard deviation, over models and texts, of the ratio of loss increase to divergence around its mean: what is
believed of the ratio before the probes speak."""
HUMBLING, HUMBLING_SPREAD = 0.2, 0.1
"""What that mean lies below 1, per overconfidence, and the standard deviation of this over models. Rounding noise makes
logits smaller too, which mends a model that is surer than it is right (ResNet-20: at 3 to 6 bits the divergence grows
and the loss does not)."""
MOST_OVERCONFIDENT = 5.0
"""Beyond, no more is believed: the loss does not fall for being rounded."""
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
    """The ratio at a divergence of `kl`: the probes' own, drawn to a prior by the share of noise in it (James, Stein).

    The nearer probe counts more. The prior is 1, give or take a third, and less for a model whose loss exceeds its
    entropy.
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


def overconfidence(measured: Measurement) -> float:
    """By what share of its entropy the original's loss exceeds it: 0 if it is as sure as it is right."""
    if not measured.entropy or not math.isfinite(measured.loss_before):
        return 0.0
    share = (measured.loss_before - measured.entropy) / measured.entropy
    return min(max(share, 0.0), MOST_OVERCONFIDENT)


def _posterior(measured: Measurement) -> LossGain:
    surplus = overconfidence(measured)
    prior, spread = 1.0 - HUMBLING * surplus, math.hypot(PRIOR_SPREAD, HUMBLING_SPREAD * surplus)
    excess = np.asarray(measured.loss_increase_by_sample) - np.asarray(measured.kl_by_sample)
    if len(excess) < 2:
        return LossGain(ratio=prior, ratio_error=spread)
    units_per_sample = measured.units / len(excess)
    noise = float(excess.std(ddof=1)) * np.sqrt(units_per_sample / measured.kl)
    error = float(excess.std(ddof=1)) / np.sqrt(len(excess)) / measured.kl
    believed = spread**2 / (spread**2 + error**2)
    ratio = prior + believed * (measured.loss_increase / measured.kl - prior)
    return LossGain(ratio=ratio, ratio_error=float(np.sqrt(believed) * error), noise=float(noise))
