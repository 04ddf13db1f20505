"""Is the model measured on what it was calibrated with?"""

from __future__ import annotations

import numpy as np

from guidedq.artifacts.diagnostic import Diagnostic, at_most
from guidedq.artifacts.samples import CalibrationSet
from guidedq.diagnostics.near_arrays import near_arrays
from guidedq.diagnostics.token_runs import RUN_TOKENS, token_runs

MOST_SHARED = 0.2
"""Held-out code of Python's library shares 3% with the rest (licences, boilerplate), WikiText-2 0.8%."""
MOST_COMPARED = 256
"""Samples of images or features: a share of them is then known to some hundredths."""


def overlap(samples: CalibrationSet) -> Diagnostic | None:
    """The share of the evaluation data that also stands in calibration, tuning or probe samples.

    Of text, its runs of 32 tokens; of images and features, the samples that are nearly equal to one of these. Equal
    samples are left out when samples are drawn; this finds texts that repeat in other places, and near copies.

    Returns:
        `None` if the samples cannot be compared.
    """
    others = (samples.calibration, samples.tuning, samples.probe)
    evaluated = token_runs(samples.evaluation)
    if evaluated is not None:
        found = [runs.hashes[runs.real] for runs in map(token_runs, others) if runs is not None]
        mine = evaluated.hashes[evaluated.real]
        share = float(np.isin(mine, np.concatenate(found)).mean()) if len(mine) else 0.0
        what = f"runs of {RUN_TOKENS} tokens that also stand"
    else:
        some = samples.evaluation.part(0, MOST_COMPARED)
        compared = [near_arrays(part, some) for part in others]
        copies = [near.any(0) for near in compared if near is not None]
        if not copies:
            return None
        share, what = float(np.logical_or.reduce(copies).mean()), "samples that nearly equal one"
    return at_most(
        "overlap",
        share,
        MOST_SHARED,
        meaning=f"share of the evaluation's {what} in the calibration data",
        advice="Give other --eval-data, or calibration data that repeat less: the measured loss is too good.",
    )
