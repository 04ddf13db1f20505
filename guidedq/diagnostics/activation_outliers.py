"""Will the runtime's own rounding of activations lose the usual ones beside a few large ones?"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from jaxtyping import Float
from torch import Tensor

from guidedq.artifacts.diagnostic import Diagnostic, at_most
from guidedq.artifacts.guidance import AbstractGuidance
from guidedq.ir.graph import Site, UseKind

LARGEST_RATIO = 254.0
"""int8 has 127 steps to a side: beyond, a usual input is less than half a step and is rounded to nothing beside the
largest. all-MiniLM-L6-v2 has 89."""


def activation_outliers(
    guidance: AbstractGuidance, sites: Sequence[Site], rounded_operators: Collection[str]
) -> Diagnostic | None:
    """The largest input of a site over its median one, by their root mean squares in the guidance.

    Args:
        guidance: Has the second moments of every site's inputs, weighted as the guide does.
        sites: Quantizable ones.
        rounded_operators: Those whose inputs the runtime rounds to int8; a runtime that computes in floats rounds none,
            and its errors do not depend on outliers.

    Returns:
        `None` if no input is rounded.
    """
    ratios = {
        site.name: max(_ratio(term.hessian) for term in guidance.site(site.name).terms)
        for site in sites
        if any(use.kind is UseKind.LINEAR and use.operator in rounded_operators for use in site.uses)
        and all(use.kind is UseKind.LINEAR for use in site.uses)
    }
    if not ratios:
        return None
    name = max(ratios, key=ratios.__getitem__)
    return at_most(
        "activation-outliers",
        ratios[name],
        LARGEST_RATIO,
        meaning=f"largest input of {name} over its median one, where the runtime rounds inputs to int8",
        advice="Let the runtime compute in floats: --backend 'onnx{accuracy-level=1}'.",
    )


def _ratio(hessian: Float[Tensor, "group in in"]) -> float:
    sizes = hessian.diagonal(dim1=1, dim2=2).sqrt()
    usual = sizes.median(1).values
    known = usual > 0.0
    return float((sizes.amax(1)[known] / usual[known]).max()) if bool(known.any()) else 1.0
