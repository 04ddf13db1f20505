"""How sensitive the rows of one site are, and how well that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64

from guidedq.artifacts.curves import SiteCurve


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivities:
    """Of the rows that distort at all.

    Attributes:
        distortion: Each row's in the format that distorts most, loss per token or sample.
        noise_variance: Of the distortion's logarithm, from the row's standard error.
    """

    distortion: Float64[np.ndarray, "row"]
    noise_variance: Float64[np.ndarray, "row"]


def sensitivities(curve: SiteCurve) -> Sensitivities:
    """Those of one site; none where nothing distorts."""
    distortion = curve.distortion.double().numpy()
    coarsest = distortion[:, distortion.mean(0).argmax()]
    live = coarsest > 0.0
    return Sensitivities(
        distortion=coarsest[live], noise_variance=np.log1p(curve.row_noise.double().numpy()[live] ** 2)
    )
