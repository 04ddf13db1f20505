"""One event: what an operator read, and how the end loss answered to what it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from guidedq.ir.graph import Site, Use, UseKind
from guidedq.ir.patches import convolution_patches


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One call of one operator on a batch, as matrices.

    Attributes:
        site: Whose weight it reads.
        use: The operator.
        inputs: What each output position reads, `[sample, token, input_group, in]` (of a recurrent use each step); for
            an embedding the row of each token, `[sample, token]`.
        gradients: Gradient of each sample's loss with respect to the output, `[sample, token, channel]`: the channel
            is `in` for an embedding, else `out`. `None` in a forward-only pass.
    """

    site: Site
    use: Use
    inputs: Shaped[Tensor, "..."]
    gradients: Float[Tensor, "sample token channel"] | None

    @property
    def rows_read(self) -> Int64[Tensor, "sample token"]:
        """The embedding rows that were read."""
        assert self.use.kind is UseKind.EMBEDDING
        return self.inputs


def as_event(
    site: Site,
    use: Use,
    module: nn.Module,
    inputs: Tensor,
    gradients: Tensor | None,
    samples: int,
) -> Event:
    """Bring one operator's input and output gradient into the form of an `Event`.

    An operator may see its batch flattened (`[sample x token, in]`), or once for all samples (a table of positions):
    what the batch shares is one sample, whose gradient is the sum over the batch.

    Args:
        site: Whose weight it reads.
        use: The operator.
        module: The operator's own module: a convolution's knows stride, padding and dilation.
        inputs: What it read.
        gradients: Gradient of its output, if there was a backward pass.
        samples: In the batch.
    """
    if use.kind is UseKind.CONVOLUTION:
        patches = convolution_patches(module, inputs.float(), site)
        flat = None if gradients is None else gradients.flatten(2).transpose(1, 2)
        return Event(site=site, use=use, inputs=patches, gradients=flat)
    if use.kind is UseKind.EMBEDDING:
        split = _samples_in(inputs.numel(), inputs.shape, samples)
        flat = None if gradients is None else gradients.reshape(split, -1, site.columns)
        return Event(site=site, use=use, inputs=inputs.reshape(split, -1).long(), gradients=flat)
    split = _samples_in(inputs.numel() // site.columns, inputs.shape, samples)
    flat = None if gradients is None else gradients.reshape(split, -1, site.rows)
    groups = site.input_groups if use.kind is UseKind.RECURRENT else 1
    tokens = inputs.float().reshape(split, -1, groups, site.columns)
    return Event(site=site, use=use, inputs=tokens, gradients=flat)


def _samples_in(tokens: int, shape: torch.Size, samples: int) -> int:
    """Into how many samples an input of so many tokens falls."""
    if shape[0] == samples:
        return samples
    return samples if shape[0] > samples and tokens % samples == 0 and len(shape) == 2 else 1
