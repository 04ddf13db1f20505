"""Is the model measured on what it was calibrated with?"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt64
from torch import Tensor

from guidedq.artifacts.diagnostic import Diagnostic, at_most
from guidedq.artifacts.samples import CalibrationSet, SampleSet
from guidedq.evaluation import token_input

RUN_TOKENS = 32
"""Tokens in a row: some ten to twenty words, which hardly ever come twice by chance."""
MOST_SHARED = 0.2
"""Held-out code of Python's library shares 3% with the rest (licences, boilerplate), WikiText-2 0.8%."""
MULTIPLIER = np.uint64(6364136223846793005)
INCREMENT = np.uint64(1442695040888963407)
"""Of Knuth's MMIX generator: a polynomial hash modulo 2^64 whose multiplier spreads well."""


def overlap(samples: CalibrationSet) -> Diagnostic | None:
    """The share of the evaluation's runs of 32 tokens that also stand in calibration, tuning or probe samples.

    Equal samples are left out when samples are drawn; this finds texts that repeat in other places.

    Returns:
        `None` if the samples are not tokens.
    """
    evaluated = _runs(samples.evaluation)
    if evaluated is None:
        return None
    others = [_runs(part) for part in (samples.calibration, samples.tuning, samples.probe)]
    known = np.concatenate([runs for runs in others if runs is not None])
    return at_most(
        "overlap",
        float(np.isin(evaluated, known).mean()) if len(evaluated) else 0.0,
        MOST_SHARED,
        meaning=f"share of the evaluation's runs of {RUN_TOKENS} tokens that also stand in the calibration data",
        advice="Give other --eval-data, or calibration data that repeat less: the measured loss is too good.",
    )


def _runs(samples: SampleSet) -> UInt64[np.ndarray, "run"] | None:
    """A hash of every run of real tokens."""
    tokens: Tensor | None = token_input(samples.inputs)
    if tokens is None or tokens.dim() != 2:
        return None
    if tokens.shape[1] < RUN_TOKENS:
        return np.zeros(0, dtype=np.uint64)
    values = tokens.numpy().astype(np.uint64)
    runs = values.shape[1] - RUN_TOKENS + 1
    state = np.zeros((len(values), runs), dtype=np.uint64)
    for offset in range(RUN_TOKENS):
        state = state * MULTIPLIER + values[:, offset : offset + runs] + INCREMENT
    if samples.mask is None or samples.mask.shape != tokens.shape:
        return state.ravel()
    return state[samples.mask.bool().unfold(1, RUN_TOKENS, 1).all(2).numpy()]
