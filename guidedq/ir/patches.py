"""What each output position of a convolution reads, for any stride, padding and dilation."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from guidedq.ir.graph import Site, Storage


def convolution_patches(
    module: nn.Module, inputs: Float[Tensor, "sample channel ..."], site: Site
) -> Float[Tensor, "sample token group in"]:
    """The inputs under the kernel at every output position, in the order of the weight's columns.

    The module itself is run with the identity for its weight, one output channel per column, so that its own
    geometry holds whatever it is. A sample is one item of the first axis; the positions are flattened.

    Args:
        module: A convolution, transposed or not, whose only parameters are `weight` and, perhaps, `bias`.
        inputs: The activations that it reads.
        site: Its weight's site.
    """
    groups, columns = site.input_groups, site.columns
    outputs = (site.shape[0], columns) if site.storage is Storage.IN_OUT_KERNEL else (groups * columns, site.shape[1])
    spread = replace(site, shape=(*outputs, *site.shape[2:]))
    replaced = {"weight": spread.stored(torch.eye(columns).repeat(groups, 1))}
    if getattr(module, "bias", None) is not None:
        replaced["bias"] = torch.zeros(groups * columns)
    with torch.no_grad():
        patches: Tensor = functional_call(module, replaced, (inputs,))
    return patches.flatten(2).unflatten(1, (groups, columns)).permute(0, 3, 1, 2)
