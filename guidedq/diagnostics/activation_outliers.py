"""Will rounding activations to integers lose the usual ones beside a few large ones?"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from guidedq.artifacts.diagnostic import Diagnostic, at_most
from guidedq.artifacts.guidance import AbstractGuidance
from guidedq.ir.activation_rounding import ActivationRounding
from guidedq.ir.graph import Site, UseKind

LARGEST_RATIO = 254.0
"""int8 has 127 steps to a side, and uint8 as many where values have both signs: beyond, a usual input is less than half
a step and is rounded to nothing beside the largest. all-MiniLM-L6-v2 has 89."""


def activation_outliers(
    guidance: AbstractGuidance, sites: Sequence[Site], rounding: ActivationRounding | None
) -> Diagnostic | None:
    """The largest input of a site over its median one, by their root mean squares in the guidance.

    The groups of a grouped convolution are looked at one by one: their second moments are weighted each on its own.

    Args:
        guidance: Has the second moments of every site's inputs, weighted as the guide does.
        sites: Quantizable ones.
        rounding: What is rounded when the artifact is run; where that is nothing, errors do not depend on outliers.

    Returns:
        `None` if no input is rounded.
    """
    if rounding is None:
        return None
    ratios = {
        site.name: max(_ratio(term.hessian) for term in guidance.site(site.name).terms)
        for site in sites
        if site.name in rounding.rows or _is_rounded_by_block(site, rounding)
    }
    if not ratios:
        return None
    name = max(ratios, key=ratios.__getitem__)
    return at_most(
        "activation-outliers",
        ratios[name],
        LARGEST_RATIO,
        meaning=f"largest input of {name} over its median one, where inputs are rounded to 8-bit integers",
        advice=f"Compute {name} in floats: --keep '{name}', a smaller --set activation-budget, or no --activations."
        if name in rounding.rows
        else "Multiply in floats: no --activations int8; for ONNX --backend 'onnx{accuracy-level=1}'.",
    )


def _is_rounded_by_block(site: Site, rounding: ActivationRounding) -> bool:
    linear = all(use.kind is UseKind.LINEAR for use in site.uses)
    return linear and any(use.operator in rounding.operators for use in site.uses)


def _ratio(hessian: Float[Tensor, "group in in"]) -> float:
    sizes = hessian.diagonal(dim1=1, dim2=2).sqrt()
    usual = sizes.median(1).values
    known = usual > 0.0
    return float((sizes.amax(1)[known] / usual[known]).max()) if bool(known.any()) else 1.0
