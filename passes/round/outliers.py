"""Outliers: the few weights of each row which stay at 16 bits because the grid serves them worst."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from guidedq.quant.formats import AffineFormat
from guidedq.quant.grid import dequantize, quantize_nearest

from .grid_search import search_grid


def choose_outliers(
    weight: Float[Tensor, "out in"], importance: Float[Tensor, "in"], format: AffineFormat
) -> Bool[Tensor, "out in"]:
    """True at the `format.outliers` weights of each row that cost most under a grid fitted to all but the largest.

    The grid is searched with twice as many of the largest weights hidden, or it would stretch to the very ones that
    are to be found. After SpQR (Dettmers et al. 2023, arXiv 2306.03078), with a fixed number per row so that no row
    index is stored.
    """
    chosen = torch.zeros_like(weight, dtype=torch.bool)
    if format.outliers == 0:
        return chosen
    suspects = min(2 * format.outliers, weight.shape[1])
    largest = (weight.square() * importance).topk(suspects, dim=1).indices
    hidden = chosen.scatter(1, largest, torch.ones_like(largest, dtype=torch.bool))
    grid = search_grid(weight, importance, format, ignored=hidden)
    error = dequantize(quantize_nearest(weight, grid, format), grid, format) - weight
    worst = (error.square() * importance).topk(format.outliers, dim=1).indices
    return chosen.scatter_(1, worst, torch.ones_like(worst, dtype=torch.bool))
