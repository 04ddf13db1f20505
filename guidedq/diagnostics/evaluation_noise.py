"""Is the measurement itself sharp enough to judge a forecast by?"""

from __future__ import annotations

import math

import numpy as np

from guidedq.artifacts.diagnostic import Diagnostic, at_most
from guidedq.artifacts.forecast import Measurement

MOST_NOISE = 0.2
"""Of the value. A forecast that is right to a tenth could not be told from one that is wrong by a third."""


def evaluation_noise(measured: Measurement, worth: float) -> Diagnostic:
    """The relative standard error of the measured divergence over the evaluation samples; 1 for a single sample.

    Args:
        measured: The artifact on these samples.
        worth: How many unlike samples they are worth.
    """
    values = np.asarray(measured.kl_by_sample, dtype=np.float64)
    count = min(float(len(values)), worth)
    if round(count) < 2:
        noise = 1.0
    elif not np.isfinite(values).all() or values.mean() <= 0.0:
        noise = 0.0  # a lost model, or one without any error, is known for sure
    else:
        noise = float(values.std(ddof=1)) / math.sqrt(count) / float(values.mean())
    return at_most(
        "evaluation-noise",
        noise,
        MOST_NOISE,
        meaning=f"relative standard error of the measured KL over {len(values)} evaluation samples "
        f"(worth {count:.0f} unlike ones)",
        advice="Measure on more samples: give more --data, or a larger --eval-data; and on samples that differ.",
    )
