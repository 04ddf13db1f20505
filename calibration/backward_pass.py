"""Run the model forwards and backwards once per batch, and hear what every site read and how the loss answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from guidedq.artifacts.samples import SampleSet
from guidedq.errors import CalibrationError
from guidedq.ir.graph import Site
from guidedq.ir.joint_output import inverse_sizes
from guidedq.ir.model import Model, Objective
from guidedq.ir.program import TorchProgram
from guidedq.memory import give_back

from .events import Event
from .listening import Ear, recomputed, repeated_blocks

SEED_STRIDE = 1_000_003
"""A prime: the seeds of sample i under seed s, `s * stride + i`, do not meet for sets of below a million samples."""

MOST_SAMPLES = 16
MOST_TOKENS = 2048
"""Of a batch: the products then have their full speed, and more would only hold more activations."""
CHANCES_AT_ONCE = 1 << 20
"""Probabilities that are given signs at once: that copies them."""
_OUTPUTS_NOT_SAVED = frozenset({"UnsafeViewBackward0", "MmBackward0", "AddmmBackward0"})
"""Last steps of a model which do not keep their output for the backward pass: logits are large, a copy costs memory.
A plain view is none of them: writing into it would make autograd build its history anew, without our hooks."""


def backward_pass(
    model: Model,
    batch: SampleSet,
    first_sample: int,
    sites: Sequence[Site],
    record: Callable[[Event], None],
    *,
    seed: int,
    recompute: bool = False,
) -> float:
    """One forward and one backward pass; `record` hears an event for each use of each of `sites`.

    What goes backwards from the logits of a position has their Fisher matrix for its second moment, so the expected
    squared gradient is the Gauss-Newton matrix, as with labels drawn from the model, and with less noise. Where the
    output is no distribution it is a random unit cotangent, over the size of the sample's output.

    Args:
        model: Its program must be a `TorchProgram`.
        batch: Samples `first_sample` and following of the set.
        first_sample: Index of the first sample: the draw for a sample does not depend on its batch.
        sites: Whose uses are to be heard.
        record: Called during the backward pass.
        seed: Seeds the draws.
        recompute: Keep only what enters each repeated block and run the block again in the backward pass: a third more
            time for a fraction of the memory.

    Returns:
        Seconds that the passes took, without those spent in `record`.
    """
    assert isinstance(model.program, TorchProgram)
    module = model.program.module
    blocks = repeated_blocks(module) if recompute else ()
    ear = Ear(record, blocks, len(batch))
    start = time.perf_counter()
    with ear.listening(module, sites), recomputed(module, blocks):
        run_both_ways(model, batch, first_sample, seed=seed, turn_back=ear.turn_back)
    give_back()
    return time.perf_counter() - start - ear.seconds


def run_both_ways(
    model: Model, batch: SampleSet, first_sample: int, *, seed: int, turn_back: Callable[[], None] = lambda: None
) -> None:
    """Forwards, and backwards from the cotangents of `backward_pass`, for whoever has put hooks on the module.

    `turn_back` is called between the two.
    """
    assert isinstance(model.program, TorchProgram)
    with torch.enable_grad():
        outputs: list[Tensor] = [model.program.module(**batch.inputs)]
    give_back()
    if outputs[0].requires_grad:
        turn_back()
        cotangents = [_cotangent(model.objective, scratch(outputs[0]), batch, first_sample, seed)]
        run_backwards(outputs, cotangents)


def run_backwards(outputs: list[Tensor], cotangents: list[Tensor]) -> None:
    """Backwards from the one output with the one cotangent in these lists, which are emptied.

    If nobody else holds them, their memory is free as soon as the last operator has used it: logits are large.
    """
    with torch.enable_grad():
        end: Any = _End.apply(outputs.pop(), cotangents)
    end.backward()


class _End(torch.autograd.Function):
    """A number whose gradient by the output is the cotangent, handed over for good."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, cotangents: list[Tensor]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.cotangents = cotangents
        return output.new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.cotangents.pop(), None


def scratch(output: Tensor) -> Tensor:
    """The output's values to be overwritten: its own memory where no backward step reads it again, else a copy."""
    in_place = output.grad_fn is not None and output.grad_fn.name() in _OUTPUTS_NOT_SAVED
    return output.detach() if in_place else output.detach().clone()


def _cotangent(objective: Objective, output: Tensor, batch: SampleSet, first_sample: int, seed: int) -> Tensor:
    if not all(bool(extreme.isfinite()) for extreme in output.aminmax()):  # without a copy: logits are large
        raise CalibrationError(
            f"the model's output is not finite on calibration samples {first_sample} to "
            f"{first_sample + len(batch) - 1}."
        )
    if objective is Objective.JOINT_VALUES:
        drawn = [_direction(sample, seed * SEED_STRIDE + first_sample + index) for index, sample in enumerate(output)]
        return torch.stack(drawn) * inverse_sizes(output)
    if objective is Objective.VALUES:
        parts = [_unit_cotangent(sample, _mask_of(batch, index), seed * SEED_STRIDE + first_sample + index)
                 for index, sample in enumerate(output)]  # fmt: skip
        return torch.stack(parts)
    for index, logits in enumerate(output):
        score(logits, _mask_of(batch, index), seed * SEED_STRIDE + first_sample + index)
    return output


def score(logits: Tensor, mask: Tensor | None, seed: int) -> None:
    """Turn one sample's logits, in place, into random signs times the root of the Fisher matrix diag(p) - p p^T.

    That root is diag(sqrt p) - p sqrt(p)^T; signs have the least noise of all that may be drawn (Hutchinson 1989). The
    gradient by a label drawn from the model has the same second moment, but says nothing where the model is sure, once
    in 1/e samples aside if p is 1 - e: of a classifier's few hundred samples a handful would be heard.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = logits.view(-1, logits.shape[-1])
    for part in flat.split(max(1, CHANCES_AT_ONCE // flat.shape[-1])):
        part.sub_(part.amax(-1, keepdim=True)).exp_()
        part.div_(part.sum(-1, keepdim=True))
        signs = torch.randint(0, 2, part.shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)
        rooted = part.sqrt().mul_(signs)
        part.mul_(-rooted.sum(-1, keepdim=True)).add_(rooted)
    if mask is not None and mask.shape == logits.shape[:-1]:
        logits.mul_(mask[..., None])


def _unit_cotangent(output: Tensor, mask: Tensor | None, seed: int) -> Tensor:
    direction = _direction(output, seed)
    if mask is not None and mask.shape == output.shape[: mask.dim()]:
        seen = mask.reshape(*mask.shape, *([1] * (output.dim() - mask.dim()))).to(direction.dtype)
        direction, output = direction * seen, output * seen
    return direction / output.norm().clamp(min=torch.finfo(torch.float32).tiny)


def _direction(output: Tensor, seed: int) -> Tensor:
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))


def _mask_of(batch: SampleSet, index: int) -> Tensor | None:
    return None if batch.mask is None else batch.mask[index]


def batch_size(model: Model, samples: SampleSet, output_elements: int = 1 << 22) -> int:
    """Samples per batch: what the model fixes, or at most 16, 2048 tokens, and so many logits as `output_elements`."""
    tokens = samples.tokens_per_sample
    fixed = model.samples_at_once(samples)
    size = fixed or min(MOST_SAMPLES, len(samples), max(1, MOST_TOKENS // tokens))
    if fixed or model.objective is not Objective.LANGUAGE_MODEL or model.vocabulary_size is None:
        return size
    return max(1, min(size, output_elements // (tokens * model.vocabulary_size)))
