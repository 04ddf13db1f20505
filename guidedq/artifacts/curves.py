"""Rate-distortion curves: what each format costs and what it does, for every row of every site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor

from guidedq.quant.formats import Format


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCurve:
    """Measured distortions of one site.

    Attributes:
        name: The site's name.
        formats: The candidates.
        distortion: Guided distortion of each row under each format, loss per token or sample, float32.
        row_noise: Standard error of each row's distortion relative to the distortion itself.
        entropy_bytes: Mean bytes of a row's codes in each entropy format, measured; 0 in others, whose bytes are known.
        projections: For each row, format and kept sequence the sum over tokens of `g . (error x)`; `None` if the
            guidance has no gradients.
    """

    name: str
    formats: tuple[Format, ...]
    distortion: Float[Tensor, "out format"]
    row_noise: Float[Tensor, "out"]
    entropy_bytes: Float[Tensor, "format"]
    projections: Float[Tensor, "out format sequence"] | None
