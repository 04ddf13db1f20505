"""Several outputs as one tensor, so that whatever runs a program sees one output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from guidedq.errors import SampleAxisError


def joined(outputs: Mapping[str, Tensor], samples: int) -> Float[Tensor, "sample output value"]:
    """The outputs side by side in float32, each flattened and filled up with zeros to the length of the longest.

    The zeros are the same whatever the weights, so neither an error nor a size counts them. Gradients flow through.

    Args:
        outputs: Each `[sample, ...]`, by name.
        samples: How many samples there are.

    Raises:
        SampleAxisError: the first axis of an output does not count the samples.
    """
    flat: list[Tensor] = []
    for name, values in outputs.items():
        if not values.ndim or len(values) != samples:
            raise SampleAxisError(name, f"the output {name!r} is {list(values.shape)} for {samples} samples.")
        flat.append(values.float().reshape(samples, values[0].numel()))
    longest = max(values.shape[1] for values in flat)
    return torch.stack([pad(values, (0, longest - values.shape[1])) for values in flat], 1)


def one_output(outputs: Mapping[str, Tensor], samples: int) -> Tensor:
    """The one output as it is, several `joined`."""
    return next(iter(outputs.values())) if len(outputs) == 1 else joined(outputs, samples)


def chosen(results: Sequence[Tensor], places: Sequence[int]) -> Float[Tensor, "sample output value"]:
    """Those of a program's results that count, `joined`; an exporter finds all of them among the arguments."""
    return joined({f"output_{place}": results[place] for place in places}, len(results[places[0]]))


def inverse_sizes(outputs: Float[Tensor, "*sample output value"]) -> Float[Tensor, "*sample output 1"]:
    """One over the norm of each output and over the root of their number.

    What is multiplied by them has length one, and an error whose square is the mean of the outputs' relative squared
    errors. An output that is zero throughout counts for nothing on that sample.
    """
    sizes = outputs.norm(dim=-1, keepdim=True)
    number = (sizes > 0).sum(-2, keepdim=True).clamp(min=1)
    smallest = torch.finfo(torch.float32).tiny
    return torch.where(sizes == 0, 0.0, 1.0 / (sizes.clamp(min=smallest) * number.sqrt()))
