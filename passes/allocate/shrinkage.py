"""Shrinkage: a row's sensitivity is known with noise; the noise is not worth paying bytes for."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64


def shrinkage_scale(
    distortion: Float32[np.ndarray, "format row"], noise: Float32[np.ndarray, "row"]
) -> Float32[np.ndarray, "row"]:
    """By what to multiply each row's distortions, so that its level is drawn toward its site's mean.

    The level of a row is its distortion relative to the mean row, averaged over formats. Log levels are taken as normal
    around their mean, with the variance of the true levels estimated as what the observed levels spread more than their
    noise explains; each is drawn to the mean by the share of noise in its variance (James and Stein 1961, in the
    empirical Bayes form of Efron and Morris 1973, with a noise for each row). The sum of the levels stays as it was, so
    nothing moves between sites. Arithmetic in float64.

    Args:
        distortion: Loss per token or sample, not negative.
        noise: Relative standard error of each row's distortion.

    Returns:
        Positive factors, 1 for rows without distortion. All 1 where there is no noise.
    """
    scale = np.ones(distortion.shape[1])
    level = _levels(distortion)
    live = level > 0.0
    if live.sum() < 2 or not noise.any():
        return scale.astype(np.float32)
    logarithm = np.log(level[live])
    noise_variance = np.log1p(noise[live].astype(np.float64) ** 2)
    signal = max(0.0, float(logarithm.var(ddof=1) - noise_variance.mean()))
    total = signal + noise_variance
    kept = np.divide(signal, total, out=np.ones_like(total), where=total > 0.0)
    shrunk = np.exp(logarithm.mean() + kept * (logarithm - logarithm.mean()))
    shrunk *= level[live].sum() / shrunk.sum()
    scale[live] = shrunk / level[live]
    return scale.astype(np.float32)


def _levels(distortion: Float32[np.ndarray, "format row"]) -> Float64[np.ndarray, "row"]:
    """Each row's distortion over the mean row's, averaged over the formats that distort at all."""
    means = distortion.mean(axis=1, dtype=np.float64)
    live = means > 0.0
    shares = np.where(live, 1.0 / np.where(live, means, 1.0), 0.0) / max(int(live.sum()), 1)
    return np.einsum("f,fr->r", shares, distortion)
