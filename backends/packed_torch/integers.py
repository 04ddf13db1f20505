"""Packed layers that round what they multiply to int8, which processors multiply by narrow codes in integers.

Each call rounds its inputs anew: 64 columns share a scale, the largest of them becomes 127 (`round_activations`). What
has no integer kernel (other formats, other processors, many inputs) multiplies the rounded numbers in float, so a model
says the same everywhere.
"""

from __future__ import annotations

from typing import Any

from guidedq.errors import ArtifactError
from guidedq.ir.activation_rounding import ActivationRounding
from guidedq.ir.graph import UseKind
from guidedq.ir.model import Model
from guidedq.quant.formats import AffineFormat
from guidedq.quant.packing import HeldFormat

from .modules import PackedLinear, PackedWeight
from .native.calls import INTEGER_BLOCK

FEWEST_BITS, MOST_BITS = 2, 6
"""Codes that the kernels multiply in integers: wider ones would overflow the 16 bits of AVX2's sums."""


def round_inputs(model: Any) -> None:
    """Let every packed linear layer of a loaded model round what it multiplies."""
    for weight in _multiplied(model):
        weight.rounds = True


def check_gain(model: Any) -> None:
    """Refuse a loaded model that would only be rounded, and no faster.

    Raises:
        ArtifactError: no layer of it is multiplied in integers.
    """
    if not any(_by_integers(part.format) for weight in _multiplied(model) for part in weight.layout.segments):
        raise ArtifactError(
            f"activations=int8: no linear layer here has fixed widths of {FEWEST_BITS} to {MOST_BITS} bits, in groups "
            f"of {INTEGER_BLOCK} or a multiple of that. Compile anew with --activations int8, or leave it out."
        )


def rounding_of(model: Model) -> ActivationRounding:
    """The same of a model that is compiled."""
    uses = [use for site in model.graph.quantizable for use in site.uses]
    return ActivationRounding(operators={use.operator: INTEGER_BLOCK for use in uses if use.kind is UseKind.LINEAR})


def _multiplied(model: Any) -> list[PackedWeight]:
    layers = [module.packed for module in model.modules() if isinstance(module, PackedLinear)]
    return [weight for weight in layers if isinstance(weight, PackedWeight)]


def _by_integers(format: HeldFormat) -> bool:
    """Whether `by_integers` of `native/integers.h` takes rows of this format."""
    if not isinstance(format, AffineFormat):
        return False
    return FEWEST_BITS <= format.bits <= MOST_BITS and format.group_size % INTEGER_BLOCK == 0
