"""Lower convex hulls of (bytes, distortion): of one list of options, and of many rows at once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8


def pareto_front(
    sizes: Int64[np.ndarray, "option"], distortion: Float64[np.ndarray, "option"]
) -> Int64[np.ndarray, "kept"]:
    """The options that no other beats in bytes and distortion, bytes rising and distortion falling, both strictly."""
    order = np.lexsort((distortion, sizes))
    sorted_distortion = distortion[order]
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], sorted_distortion[:-1]]))
    return order[sorted_distortion < best_before]


def lower_hull(
    sizes: Int64[np.ndarray, "option"], distortion: Float64[np.ndarray, "option"]
) -> Int64[np.ndarray, "vertex"]:
    """The vertices of the lower convex hull of a Pareto front, in its order; the slopes between them fall strictly.

    Andrew's monotone chain (1979).
    """
    hull: list[int] = []
    for index in range(len(sizes)):
        while len(hull) > 1 and _slope(sizes, distortion, hull[-2], hull[-1]) <= _slope(
            sizes, distortion, hull[-1], index
        ):
            hull.pop()
        hull.append(index)
    return np.array(hull, dtype=np.int64)


def steepest_upgrades(
    row_bytes: Int64[np.ndarray, "format"],
    distortion: Float32[np.ndarray, "format row"],
    current: UInt8[np.ndarray, "row"],
    allowed: Bool[np.ndarray, "format"],
) -> tuple[UInt8[np.ndarray, "row"], Float64[np.ndarray, "row"]]:
    """For each row the larger format that removes most distortion per byte, and how much; slope 0 where none helps.

    Of equal slopes the larger format. Repeated, this walks each row's lower convex hull.
    """
    candidates = np.flatnonzero(allowed)
    candidates = candidates[np.argsort(-row_bytes[candidates], kind="stable")]
    now = distortion[current, np.arange(len(current))].astype(np.float64)
    extra = row_bytes[candidates, None] - row_bytes[current]
    slopes = np.divide(now - distortion[candidates], extra, out=np.zeros(extra.shape), where=extra > 0)
    best = slopes.argmax(axis=0)
    slope = slopes[best, np.arange(len(current))]
    target = np.where(slope > 0.0, candidates[best], current).astype(np.uint8)
    return target, np.maximum(slope, 0.0)


def hull_slopes(
    row_bytes: Int64[np.ndarray, "format"], distortion: Float32[np.ndarray, "format row"]
) -> tuple[Float64[np.ndarray, "edge"], Int64[np.ndarray, "edge"]]:
    """All falling edges of all rows' lower convex hulls: distortion removed per byte, and the row; in no order.

    A format is a vertex if the flattest fall to it is steeper than the steepest fall from it; that flattest fall is its
    edge. Time and memory are quadratic in the formats: meant for a sample of rows.
    """
    order = np.argsort(row_bytes, kind="stable")
    sizes, losses = row_bytes[order], distortion[order].astype(np.float64)
    extra = (sizes[None, :] - sizes[:, None])[:, :, None]
    gain = losses[:, None] - losses[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        fall = np.where(extra > 0, gain / extra, np.where(gain > 0.0, np.inf, -np.inf))
    later = np.triu(np.ones((len(sizes), len(sizes)), dtype=np.bool_), 1)[:, :, None]
    inward = np.where(later, fall, np.inf).min(axis=0)
    outward = np.where(later, fall, 0.0).max(axis=1)
    formats, rows = np.nonzero((inward > outward) & np.isfinite(inward))
    return inward[formats, rows], rows


def _slope(
    sizes: Int64[np.ndarray, "option"], distortion: Float64[np.ndarray, "option"], start: int, stop: int
) -> float:
    return float((distortion[start] - distortion[stop]) / (sizes[stop] - sizes[start]))
