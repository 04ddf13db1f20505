"""Which few formats a site should mix, at every multiplier; judged on a sample of its rows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from .hull import hull_slopes

SAMPLED_ROWS = 96
"""Rows on which formats are chosen: a format that pays on a whole site pays on a stratified sample of this size."""
TOP_ROWS = 16
"""Of these, so many are the site's most sensitive ones: few rows often carry most of the distortion."""
SWAP_ROUNDS = 2
"""The first round fills the slots greedily, the second reconsiders each with the others in place."""


def sampled_rows(
    distortion: Float32[np.ndarray, "format row"],
) -> tuple[Int64[np.ndarray, "sample"], Float32[np.ndarray, "sample"]]:
    """Rows that stand for all, and how many each stands for: the most sensitive ones, and strata of the others."""
    count = distortion.shape[1]
    if count <= SAMPLED_ROWS:
        return np.arange(count), np.ones(count, dtype=np.float32)
    ranked = np.argsort(-distortion.max(axis=0), kind="stable")
    edges = np.linspace(TOP_ROWS, count, SAMPLED_ROWS - TOP_ROWS + 1).astype(np.int64)
    middles = (edges[:-1] + edges[1:] - 1) // 2
    rows = np.concatenate([ranked[:TOP_ROWS], ranked[middles]])
    weights = np.concatenate([np.ones(TOP_ROWS), np.diff(edges)])
    return rows, weights.astype(np.float32)


def multiplier_grid(
    row_bytes: Int64[np.ndarray, "format"],
    distortion: Float32[np.ndarray, "format sample"],
    weights: Float32[np.ndarray, "sample"],
    count: int,
) -> Float64[np.ndarray, "multiplier"]:
    """At most `count` multipliers, falling, between which about equally many rows change their format.

    Each lies between two neighbouring slopes of the rows' hulls, so that no row is undecided.
    """
    slopes, rows = hull_slopes(row_bytes, distortion)
    order = np.argsort(-slopes, kind="stable")
    slopes, passed = slopes[order], np.cumsum(weights[rows[order]].astype(np.float64))
    if not len(slopes):
        return np.zeros(0)
    after = np.append(slopes[1:], slopes[-1] / 2)
    goals = passed[-1] * (np.arange(count) + 1) / count
    last = np.unique(np.searchsorted(passed, goals).clip(max=len(slopes) - 1))
    if len(slopes) <= count:
        last = np.arange(len(slopes))
    return np.unique(np.sqrt(slopes[last]) * np.sqrt(after[last]))[::-1]


def choose_alphabets(
    cost: Float32[np.ndarray, "multiplier format sample"],
    opening: Float32[np.ndarray, "multiplier format"],
    segments: int,
) -> Bool[np.ndarray, "multiplier format"]:
    """The at most `segments` formats which each multiplier's rows should choose from.

    Args:
        cost: Lagrangian cost of each sampled row in each format.
        opening: Cost of using a format at all.
        segments: Most formats.
    """
    multipliers, formats, rows = cost.shape
    unreachable = np.full((multipliers, 1, rows), np.inf, dtype=np.float32)
    closed = np.concatenate([cost, unreachable], axis=1)
    slots = np.full((multipliers, segments), formats)
    for _ in range(SWAP_ROUNDS):
        for slot in range(segments):
            slots[:, slot] = _best_for_slot(cost, closed, opening, np.delete(slots, slot, axis=1))
    used = np.zeros((multipliers, formats + 1), dtype=np.bool_)
    np.put_along_axis(used, slots, True, axis=1)
    return used[:, :formats]


def _best_for_slot(
    cost: Float32[np.ndarray, "multiplier format sample"],
    closed: Float32[np.ndarray, "multiplier slotformat sample"],
    opening: Float32[np.ndarray, "multiplier format"],
    others: Int64[np.ndarray, "multiplier other"],
) -> Int64[np.ndarray, "multiplier"]:
    """The format that lowers the cost most beside the others; the closed one (the last) if none lowers it."""
    multipliers, formats, rows = cost.shape
    current = np.full((multipliers, rows), np.inf, dtype=np.float32)
    for other in range(others.shape[1]):
        np.minimum(current, closed[np.arange(multipliers), others[:, other]], out=current)
    totals = np.minimum(cost, current[:, None]).sum(axis=2) + opening
    best = totals.argmin(axis=1)
    pays = np.take_along_axis(totals, best[:, None], axis=1)[:, 0] < current.sum(axis=1)
    return np.where(pays, best, formats)
