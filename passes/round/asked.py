"""What a rounder is asked for: formats, and the rows of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from guidedq.quant.formats import RoundedFormat


def rows_of(
    matrix: Tensor, formats: Sequence[RoundedFormat], rows: Sequence[Tensor] | None
) -> list[tuple[RoundedFormat, Tensor]]:
    """Each format with its rows; all rows of the matrix where none are named."""
    every = torch.arange(len(matrix))
    return [(format, every if rows is None else rows[number]) for number, format in enumerate(formats)]
