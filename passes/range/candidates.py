"""The narrower grids that a range is chosen from."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from guidedq.artifacts.activations import ActivationHistogram
from guidedq.quant.integer import IntegerGrid, integer_grid

SHARES = tuple(0.5 ** (step / 8) for step in range(41))
"""Of the whole range, down to a thirty-second, twelve to the power of ten: neighbours differ by a twelfth, at which the
cost near its minimum changes by some percent."""
ROUNDS = 2
"""The two ends depend on each other by their sum alone, so a second look at each settles them."""


def least(histogram: ActivationHistogram, cost: Callable[[IntegerGrid], float], *, symmetric: bool) -> IntegerGrid:
    """The grid of least cost among those that end at one of `SHARES` of the lowest and of the highest value.

    The ends are chosen in turns, each given the other; of equals the widest grid.
    """
    low, high = histogram.low, histogram.high
    if symmetric:
        return min(_both(low, high), key=cost)
    for _ in range(ROUNDS if low < 0 < high else 1):
        if histogram.high > 0:
            high = min((share * histogram.high for share in SHARES), key=lambda end: cost(integer_grid(low, end)))
        if histogram.low < 0:
            low = min((share * histogram.low for share in SHARES), key=lambda end: cost(integer_grid(end, high)))
    return integer_grid(low, high)


def _both(low: float, high: float) -> Iterator[IntegerGrid]:
    return (integer_grid(share * low, share * high, symmetric=True) for share in SHARES)
