"""How many unlike samples a set of samples is worth."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_matrix

from guidedq.artifacts.samples import SampleSet
from guidedq.diagnostics.near_arrays import near_arrays
from guidedq.diagnostics.token_runs import TokenRuns, token_runs

MOST_COMPARED = 256
"""Samples, drawn at random: their 30 thousand pairs tell the mean likeness well."""
COMPARED_RUN = 8
"""Tokens: few enough that a text with some words changed is still like the one that it was, and so many that different
texts share them by quoting alone."""


def effective_samples(samples: SampleSet) -> float:
    """Kish's effective size (1965): how many unlike samples tell a mean as well as these.

    `n / (1 + (n - 1) mean likeness)`: what samples have in common does not average out. The likeness of a text to
    another is the share of its runs of tokens that the other has, too; other samples are nearly equal, or unlike.
    """
    count = len(samples)
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:MOST_COMPARED].sort().values
    alike = _likeness(samples.pick(chosen))
    if count < 2 or alike is None:
        return float(count)
    compared = len(alike)
    mean = (float(alike.sum()) - compared) / (compared * (compared - 1))
    return count / (1.0 + (count - 1) * max(mean, 0.0))


def _likeness(samples: SampleSet) -> Float[np.ndarray, "sample sample"] | None:
    """Of every pair, 1 for a sample with itself; `None` if nothing can be compared."""
    near = near_arrays(samples, samples)
    runs = token_runs(samples, COMPARED_RUN)
    if runs is None:
        return None if near is None else near.double().numpy()
    shared = _shared(runs)
    return shared if near is None else shared * near.double().numpy()


def _shared(runs: TokenRuns) -> Float[np.ndarray, "sample sample"]:
    """The share of each sample's different runs that each other has; a text without runs is like itself alone."""
    _, numbers = np.unique(runs.hashes, return_inverse=True)
    places = np.nonzero(runs.real)
    columns = numbers.reshape(runs.hashes.shape)[places]
    shape = (len(runs.hashes), runs.hashes.size + 1)
    held = csr_matrix((np.ones(len(columns)), (places[0], columns)), shape=shape)
    held.data[:] = 1.0  # a run that comes twice in a sample was added up
    both = (held @ held.T).toarray()
    return np.where(np.eye(len(both)), 1.0, both / np.maximum(both.diagonal(), 1.0)[:, None])
