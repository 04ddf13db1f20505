"""From divergence to accuracy: what changed choices cost if the original is as sure as it is right, and by labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from guidedq.artifacts.forecast import Probe

from .loss import PRIOR_SPREAD, SMALLEST, LossGain, nearness

FLIP_POWER = 0.25
"""Choices change in proportion to the error of the logits, the root of the divergence; their chance effect on the share
of right ones grows as the root of their number."""


def accuracy_gain(kl: float, probes: Sequence[Probe]) -> LossGain | None:
    """Expected fall of the accuracy per divergence, at a divergence of `kl`; `None` where a probe has no labels.

    As the loss follows the divergence, the fall follows the regret, which needs no labels and has less noise: the ratio
    of the two is drawn to 1 by the share of noise in it. Regret is quadratic in the error as the divergence is.
    """
    heard = [probe for probe in probes if probe.measured.kl > SMALLEST]
    if not heard or not all(probe.measured.accuracy_drop_by_sample for probe in probes):
        return None
    weights = nearness(kl, [probe.measured.kl for probe in heard])
    gains = [_posterior(probe) for probe in heard]
    return LossGain(
        ratio=float(weights @ [gain.ratio for gain in gains]),
        ratio_error=float(weights @ [gain.ratio_error for gain in gains]),
        noise=float(weights @ [gain.noise for gain in gains]),
        noise_power=FLIP_POWER,
    )


def _posterior(probe: Probe) -> LossGain:
    kl = probe.measured.kl
    drops = np.asarray(probe.measured.accuracy_drop_by_sample, dtype=np.float64)
    regrets = np.asarray(probe.measured.regret_by_sample, dtype=np.float64)
    if len(drops) < 2 or len(drops) != len(regrets):
        return LossGain(ratio=0.0, ratio_error=1.0 / kl, noise_power=FLIP_POWER)
    one = 1.0 / probe.measured.units  # what is not seen in so many samples may be one among them
    spread = max(float((drops - regrets).std(ddof=1)), float(np.sqrt(one * len(drops) / probe.measured.units)))
    noise = spread * np.sqrt(probe.measured.units / len(drops)) / kl**FLIP_POWER
    regret = float(regrets.mean())
    if regret < one * PRIOR_SPREAD:
        return LossGain(ratio=regret / kl, ratio_error=one / kl, noise=float(noise), noise_power=FLIP_POWER)
    error = spread / np.sqrt(len(drops)) / regret
    believed = PRIOR_SPREAD**2 / (PRIOR_SPREAD**2 + error**2)
    ratio = 1.0 + believed * (float(drops.mean()) / regret - 1.0)
    scale = regret / kl
    return LossGain(
        ratio=scale * ratio,
        ratio_error=float(scale * np.sqrt(believed) * error),
        noise=float(noise),
        noise_power=FLIP_POWER,
    )
