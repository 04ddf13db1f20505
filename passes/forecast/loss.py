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
SLOPE = 0.05
"""Standard deviation of what the loss's own gradient adds, over the root of the divergence: a model trained little, or
read on other text than its own, is at no minimum, and errors of the weights lead down or up as it happens."""
NEAR = 0.1
"""Log distance of divergences at which two models still share a third of it; at which, for chance, a probe counts half
of what it would at the very place."""
TREMBLE = 0.01
"""Of two measurements of one model, so that the two do not contradict each other."""
ROUNDING = 1e-6
"""Of a divergence: what differs by less is alike."""
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
    """The ratio at a divergence of `kl`: the best linear prediction from the probes' own, as noisy as their samples.

    Beforehand it is 1, give or take a third, and less for a model whose loss exceeds its entropy; and it has a part
    that a model shares with itself alone, the larger the smaller its divergence. Where the loss is the divergence, as
    without labels, there is nothing to believe.
    """
    seen = [probe.measured for probe in probes if probe.measured.kl > SMALLEST]
    if seen and all(float(np.abs(_excess(measured)).max(initial=0.0)) < ROUNDING * measured.kl for measured in seen):
        return LossGain(ratio_error=0.0)
    heard = [measured for measured in seen if len(measured.loss_increase_by_sample) > 1]
    surplus = float(np.mean([_overconfidence(probe.measured) for probe in probes])) if probes else 0.0
    prior = 1.0 - HUMBLING * surplus
    places = np.array([max(kl, SMALLEST), *(measured.kl for measured in heard)])
    near = np.exp(-np.abs(np.log(places)[:, None] - np.log(places)) / NEAR)
    own = SLOPE**2 * near / np.sqrt(places[:, None] * places) + TREMBLE**2 * np.eye(len(places))
    covariance = PRIOR_SPREAD**2 + (HUMBLING_SPREAD * surplus) ** 2 + own
    ahead = covariance[1:, 0]
    weights = np.linalg.solve(covariance[1:, 1:] + _noise_covariance(heard), ahead)
    ratios = np.array([measured.loss_increase / measured.kl for measured in heard])
    return LossGain(
        ratio=float(prior + weights @ (ratios - prior)),
        ratio_error=float(np.sqrt(max(covariance[0, 0] - weights @ ahead, 0.0))),
        noise=float(nearness(kl, [measured.kl for measured in seen]) @ [_chance(measured) for measured in seen]),
    )


def nearness(kl: float, divergences: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """How much what was found at each of these divergences counts at `kl`; together 1, if there are any."""
    distances = np.abs(np.log(np.asarray(divergences) / max(kl, SMALLEST)))
    weights = 1.0 / (NEAR + distances)
    return weights / weights.sum()


def _overconfidence(measured: Measurement) -> float:
    """By what share of its entropy the original's loss exceeds it: 0 if it is as sure as it is right."""
    if not measured.entropy or not math.isfinite(measured.loss_before):
        return 0.0
    share = (measured.loss_before - measured.entropy) / measured.entropy
    return min(max(share, 0.0), MOST_OVERCONFIDENT)


def _excess(measured: Measurement) -> NDArray[np.float64]:
    """By which the loss of each sample grows beyond its divergence."""
    return np.asarray(measured.loss_increase_by_sample) - np.asarray(measured.kl_by_sample)


def _noise_covariance(heard: Sequence[Measurement]) -> NDArray[np.float64]:
    """Of the measured ratios; alike for those on as many samples, which are the same."""
    covariance = np.zeros((len(heard), len(heard)))
    relative = [_excess(measured) / measured.kl for measured in heard]
    for row, one in enumerate(relative):
        for column, other in enumerate(relative):
            if len(one) == len(other):
                covariance[row, column] = np.cov(one, other)[0, 1] / len(one)
    return covariance


def _chance(measured: Measurement) -> float:
    """What labels add by chance, for one unit at divergence 1: of one sample, what they do if the original is right.

    The logarithm of the ratio of two near distributions has twice their divergence for its variance.
    """
    if len(measured.loss_increase_by_sample) < 2:
        return math.sqrt(2.0)
    excess = _excess(measured)
    return float(excess.std(ddof=1) * np.sqrt(measured.units / len(excess) / measured.kl))
