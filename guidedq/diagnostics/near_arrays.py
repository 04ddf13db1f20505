"""Which samples of images or features are nearly equal to others."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from guidedq.artifacts.samples import SampleSet

NEAREST = 0.05
"""Of a usual distance: a picture and its copy at 26 dB, which are hard to tell apart."""
FEWEST_VALUES = 8
"""Of a sample: with fewer, some of a few thousand samples come so near by chance."""
MOST_VALUES = 1024
"""Of a sample that are looked at, drawn at random: they tell a mean square to a twentieth."""


def near_arrays(first: SampleSet, second: SampleSet) -> Bool[Tensor, "first second"] | None:
    """Which samples of the one set are nearly equal to which of the other, in all their floating-point inputs.

    A usual distance is the median one within the first set; where samples have several axes, as images do, not less
    than that of unrelated samples of their contrast, so that a set of copies of one image is known as such.

    Returns:
        `None` if no such input has enough values.
    """
    found: Tensor | None = None
    for name, values in first.inputs.items():
        size = values[0].numel()
        if not values.is_floating_point() or size < FEWEST_VALUES or values[0].shape != second.inputs[name].shape[1:]:
            continue
        drawn = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:MOST_VALUES]
        one, other = (part.flatten(1)[:, drawn].double() for part in (values, second.inputs[name]))
        near = _squares(one, other) <= NEAREST**2 * _usual(one, has_contrast=values.dim() > 2)
        found = near if found is None else found & near
    return found


def _usual(values: Float[Tensor, "sample value"], *, has_contrast: bool) -> float:
    """The square of a usual distance."""
    pairs = torch.triu_indices(len(values), len(values), offset=1)
    squares = _squares(values, values)[pairs[0], pairs[1]]
    median = float(squares.median()) if len(squares) else 0.0
    return max(median, 2.0 * float(values.var(1).mean())) if has_contrast else median


def _squares(one: Float[Tensor, "one value"], other: Float[Tensor, "other value"]) -> Float[Tensor, "one other"]:
    """Mean squared differences, each difference taken as such: near equality is what is asked about."""
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist").square() / one.shape[1]
