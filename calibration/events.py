"""One event: what an operator read, and how the end loss answered to what it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

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
        inputs: For linear and convolution uses what each output position reads, `[sample, token, input_group, in]`;
            for an embedding the row of each token, `[sample, token]`.
        gradients: Gradient of each sample's loss with respect to the output, `[sample, token, channel]`: the channel
            is `out` for linear and convolution uses, `in` for an embedding. `None` in a forward-only pass.
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


def as_event(site: Site, use: Use, module: nn.Module | None, inputs: Tensor, gradients: Tensor | None) -> Event:
    """Bring one operator's input and output gradient into the form of an `Event`.

    `module` is the operator's own, needed for convolutions: it knows stride, padding and dilation.
    """
    samples = inputs.shape[0]
    if use.kind is UseKind.EMBEDDING:
        columns = site.columns
        flat = None if gradients is None else gradients.reshape(samples, -1, columns)
        return Event(site=site, use=use, inputs=inputs.reshape(samples, -1).long(), gradients=flat)
    if use.kind is UseKind.CONVOLUTION:
        assert module is not None
        patches = convolution_patches(module, inputs.float(), site)
        flat = None if gradients is None else gradients.flatten(2).transpose(1, 2)
        return Event(site=site, use=use, inputs=patches, gradients=flat)
    tokens = inputs.float().reshape(samples, -1, 1, site.columns)
    flat = None if gradients is None else gradients.reshape(samples, -1, site.rows)
    return Event(site=site, use=use, inputs=tokens, gradients=flat)
