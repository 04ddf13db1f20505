"""Runs of tokens, as numbers that are compared: what two texts share, they share in runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, UInt64
from torch import Tensor

from guidedq.artifacts.samples import SampleSet
from guidedq.evaluation import token_input

RUN_TOKENS = 32
"""Tokens in a row: some ten to twenty words, which hardly ever come twice by chance."""
MULTIPLIER = np.uint64(6364136223846793005)
INCREMENT = np.uint64(1442695040888963407)
"""Of Knuth's MMIX generator: a polynomial hash modulo 2^64 whose multiplier spreads well."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRuns:
    """The runs of every sample.

    Attributes:
        hashes: A number for each run; equal runs have equal ones.
        real: Which of them hold no padding.
    """

    hashes: UInt64[np.ndarray, "sample run"]
    real: Bool[np.ndarray, "sample run"]


def token_runs(samples: SampleSet, length: int = RUN_TOKENS) -> TokenRuns | None:
    """All runs of so many tokens; `None` if the samples are not tokens."""
    tokens: Tensor | None = token_input(samples.inputs)
    if tokens is None or tokens.dim() != 2:
        return None
    runs = max(tokens.shape[1] - length + 1, 0)
    values = tokens.numpy().astype(np.uint64)
    state = np.zeros((len(values), runs), dtype=np.uint64)
    for offset in range(length if runs else 0):
        state = state * MULTIPLIER + values[:, offset : offset + runs] + INCREMENT
    if samples.mask is None or samples.mask.shape != tokens.shape or not runs:
        return TokenRuns(hashes=state, real=np.ones(state.shape, dtype=np.bool_))
    return TokenRuns(hashes=state, real=samples.mask.bool().unfold(1, length, 1).all(2).numpy())
