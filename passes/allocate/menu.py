"""Menus: the options between which a unit is decided as a whole, each with its exact bytes and distortion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from .alphabet import choose_alphabets, multiplier_grid, sampled_rows
from .hull import pareto_front
from .units import Choice, Unit

MULTIPLIERS = 24
"""Mixtures on a unit's menu: between neighbours about 4% of the rows' steps. On log-normal rows 48 save 0.5% more."""
ROWS_AT_ONCE = 2048
"""Rows decided in one go for all multipliers: their costs then stay within a core's second-level cache; and a count of
them fits 16 bits."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Menu:
    """The options of one unit, none worse than another in both bytes and distortion: bytes rise, distortion falls.

    An option is a multiplier and an alphabet: each row takes, of the alphabet, the format with the least distortion
    (scaled by the row's shrinkage) plus multiplier times bytes. A single format is an alphabet of one.

    Attributes:
        unit: Whose menu it is.
        scale: Shrinkage of each row.
        bytes: Exact, side information counted.
        distortion: Sum over rows, not shrunk, accumulated in float64.
        multiplier: Distortion per byte.
        alphabet: The formats to choose from.
    """

    unit: Unit
    scale: Float32[np.ndarray, "row"]
    bytes: Int64[np.ndarray, "option"]
    distortion: Float64[np.ndarray, "option"]
    multiplier: Float64[np.ndarray, "option"]
    alphabet: Bool[np.ndarray, "option format"]

    def choice(self, option: int) -> Choice:
        """The format of every row under one option."""
        if self.alphabet[option].sum() == 1:
            return self.unit.single(int(self.alphabet[option].argmax()))
        multipliers, alphabets = self.multiplier[[option]], self.alphabet[[option]]
        ranks = [part for part, _ in _decide(self.unit, self.scale, multipliers, alphabets)]
        formats = np.array([index for index, _ in _spans(self.unit, alphabets)], dtype=np.uint8)
        return formats[np.concatenate(ranks, axis=1)[0]]


def menu_of(unit: Unit, scale: Float32[np.ndarray, "row"], *, mixed: bool) -> Menu:
    """All single formats and, if asked for and possible, mixtures; what another option beats is left out."""
    formats = len(unit.formats)
    sizes = np.array(unit.single_bytes, dtype=np.int64)
    distortion = np.array(unit.single_distortion)
    multiplier = np.zeros(formats)
    alphabet = np.eye(formats, dtype=np.bool_)
    if mixed and unit.segments > 1:
        more_multipliers, more_alphabets = _mixtures(unit, scale)
        if not len(more_multipliers):
            return menu_of(unit, scale, mixed=False)
        more_sizes, more_distortion = _measured(unit, scale, more_multipliers, more_alphabets)
        sizes, distortion = np.append(sizes, more_sizes), np.append(distortion, more_distortion)
        multiplier = np.append(multiplier, more_multipliers)
        alphabet = np.concatenate([alphabet, more_alphabets])
    kept = pareto_front(sizes, distortion)
    return Menu(
        unit=unit,
        scale=scale,
        bytes=sizes[kept],
        distortion=distortion[kept],
        multiplier=multiplier[kept],
        alphabet=alphabet[kept],
    )


def row_bytes_of(unit: Unit) -> Int64[np.ndarray, "format"]:
    """Bytes of a row in each format of a unit whose rows may be mixed."""
    assert unit.footprint is not None
    return np.array(unit.footprint.row_bytes, dtype=np.int64)


def _mixtures(
    unit: Unit, scale: Float32[np.ndarray, "row"]
) -> tuple[Float64[np.ndarray, "multiplier"], Bool[np.ndarray, "multiplier format"]]:
    """Multipliers over the unit's whole range, and the alphabet for each."""
    assert unit.footprint is not None
    row_bytes = row_bytes_of(unit)
    rows, weights = sampled_rows(unit.distortion)
    sample = unit.distortion[:, rows] * scale[rows]
    multipliers = multiplier_grid(row_bytes, sample, weights, MULTIPLIERS)
    price = multipliers[:, None] * (row_bytes - row_bytes.min())
    opening = multipliers[:, None] * np.array(unit.footprint.segment_bytes)
    cost = (sample[None] + price.astype(np.float32)[:, :, None]) * weights
    return multipliers, choose_alphabets(cost, opening.astype(np.float32), unit.segments)


def _measured(
    unit: Unit,
    scale: Float32[np.ndarray, "row"],
    multipliers: Float64[np.ndarray, "option"],
    alphabets: Bool[np.ndarray, "option format"],
) -> tuple[Int64[np.ndarray, "option"], Float64[np.ndarray, "option"]]:
    """Exact bytes and distortion of mixtures."""
    spans = _spans(unit, alphabets)
    counts = np.zeros(alphabets.shape, dtype=np.int64)
    distortion = np.zeros(len(multipliers))
    for ranks, chosen in _decide(unit, scale, multipliers, alphabets):
        distortion += chosen.sum(axis=1, dtype=np.float64)
        for rank, (index, span) in enumerate(spans):
            counts[span, index] += (ranks[span] == rank).view(np.uint8).sum(axis=1, dtype=np.uint16)
    return unit.mixed_bytes(counts), distortion


def _decide(
    unit: Unit,
    scale: Float32[np.ndarray, "row"],
    multipliers: Float64[np.ndarray, "option"],
    alphabets: Bool[np.ndarray, "option format"],
) -> Iterator[tuple[UInt8[np.ndarray, "option part"], Float32[np.ndarray, "option part"]]]:
    """For consecutive parts of the rows, each option's formats, as ranks among `_spans`, and their distortions.

    Of equal costs the smaller format. A later format has a higher rank, so the rank of the best is the highest that was
    ever better: a maximum, which numpy does twenty times faster than a masked copy.
    """
    row_bytes = row_bytes_of(unit)
    price = np.where(alphabets, multipliers[:, None] * (row_bytes - row_bytes.min()), np.inf).astype(np.float32)
    spans = _spans(unit, alphabets)
    for start in range(0, unit.distortion.shape[1], ROWS_AT_ONCE):
        part = unit.distortion[:, start : start + ROWS_AT_ONCE]
        part_scale = scale[start : start + ROWS_AT_ONCE]
        shape = (len(multipliers), part.shape[1])
        best = np.full(shape, np.inf, dtype=np.float32)
        ranks = np.zeros(shape, dtype=np.uint8)
        for rank, (index, span) in enumerate(spans):
            cost = part[index] * part_scale + price[span, index, None]
            better = cost < best[span]
            np.minimum(best[span], cost, out=best[span])
            np.maximum(ranks[span], better.view(np.uint8) * np.uint8(rank), out=ranks[span])
        offered = part[[index for index, _ in spans]].ravel()
        yield ranks, offered.take(ranks.astype(np.int32) * np.int32(shape[1]) + np.arange(shape[1], dtype=np.int32))


def _spans(unit: Unit, alphabets: Bool[np.ndarray, "option format"]) -> list[tuple[int, slice]]:
    """The formats in use, by bytes, and from which to which option they are."""
    first = alphabets.argmax(axis=0)
    last = len(alphabets) - np.flip(alphabets, axis=0).argmax(axis=0)
    order = np.argsort(row_bytes_of(unit), kind="stable").tolist()
    used = np.any(alphabets, axis=0)
    return [(index, slice(int(first[index]), int(last[index]))) for index in order if used[index]]
