"""How the divergence of a quantized model's output from the original's changes with that output."""

from __future__ import annotations

import torch
from torch import Tensor

from guidedq.artifacts.samples import SampleSet
from guidedq.ir.joint_output import inverse_sizes
from guidedq.ir.model import Objective

CHUNK_ELEMENTS = 1 << 20
"""Logits that are turned into probabilities at once."""


def divergence_gradient(objective: Objective, original: Tensor, quantized: Tensor, batch: SampleSet) -> float:
    """Turn the quantized output, in place, into the gradient of the mean divergence; `evaluation.measure` defines it.

    For distributions that is the difference of the probabilities, for values the error over the squared output.

    Args:
        objective: What the output means.
        original: The original's output, `[sample, ...]`.
        quantized: Overwritten.
        batch: Its mask says which positions count.

    Returns:
        The mean divergence.
    """
    if objective is Objective.JOINT_VALUES:
        return _joint_gradient(original, quantized)
    if objective is Objective.VALUES:
        return _values_gradient(original, quantized, batch.mask)
    rows, other = original.reshape(-1, original.shape[-1]), quantized.view(-1, quantized.shape[-1])
    mask = batch.mask
    real = mask.reshape(-1).bool() if mask is not None and mask.numel() == len(rows) else None
    units = len(rows) if real is None else max(1, int(real.sum()))
    total = 0.0
    step = max(1, CHUNK_ELEMENTS // rows.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        p, q = torch.log_softmax(rows[part].float(), -1), torch.log_softmax(other[part].float(), -1)
        share = p.exp()
        gains = torch.where(share > 0, share * (p - q), 0.0).sum(-1)
        gradient = q.exp_().sub_(share).div_(units)
        if real is not None:
            gains, gradient = gains * real[part], gradient * real[part, None]
        total += float(gains.sum())
        other[part] = gradient
    return total / units


def _joint_gradient(original: Tensor, quantized: Tensor) -> float:
    sizes = inverse_sizes(original)
    error = (quantized - original) * sizes
    quantized.copy_(error * sizes / len(original))
    return float(0.5 * error.square().sum() / len(original))


def _values_gradient(original: Tensor, quantized: Tensor, mask: Tensor | None) -> float:
    total = 0.0
    for index in range(len(original)):
        before, after = original[index], quantized[index]
        error = after - before
        if mask is not None and mask[index].shape == error.shape[: mask[index].dim()]:
            seen = mask[index].reshape(*mask[index].shape, *([1] * (error.dim() - mask[index].dim()))).to(error.dtype)
            error, before = error * seen, before * seen
        size = before.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
        total += float(0.5 * error.square().sum() / size)
        after.copy_(error / (size * len(original)))
    return total / len(original)
