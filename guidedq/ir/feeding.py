"""From samples to what a model takes: its own place for the sample axis, and as many samples at once as it allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from guidedq.errors import ModelError
from guidedq.ir.model import InputSpec


def fed(specs: Sequence[InputSpec], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs as the model takes them, from tensors `[sample, ...]`.

    Raises:
        ModelError: an input is missing or unknown.
    """
    if set(batch) != {spec.name for spec in specs}:
        raise ModelError(f"the model takes the inputs {sorted(spec.name for spec in specs)}, found {sorted(batch)}.")
    return {spec.name: _placed(spec, batch[spec.name]) for spec in specs}


def in_turns(
    specs: Sequence[InputSpec], batch: Mapping[str, Tensor], run: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Run all samples, at once or, where the model does not take so many, part by part; results `[sample, ...]`.

    A last part that is too short is filled up with its last sample. An input without a sample axis that differs from
    sample to sample lets them run one by one.
    """
    size, count = next((spec.batch for spec in specs if spec.batch is not None), None), sample_count(batch)
    shared = [batch[spec.name] for spec in specs if spec.sample_axis is None and spec.name in batch]
    if any(not bool((values == values[:1]).all()) for values in shared):
        size = 1
    if size is None or size == count:
        return dict(run(batch))
    parts: list[Mapping[str, Tensor]] = []
    for start in range(0, count, size):
        places = torch.arange(start, start + size).clamp(max=count - 1)
        parts.append(run({name: values[places] for name, values in batch.items()}))
    return {name: torch.cat([part[name] for part in parts])[:count] for name in parts[0]}


def sample_count(batch: Mapping[str, Tensor]) -> int:
    """The number of samples in a batch; a tensor without axes stands for one."""
    return next((len(values) for values in batch.values() if values.ndim), 1)


def _placed(spec: InputSpec, values: Tensor) -> Tensor:
    if spec.sample_axis is None:
        return values[0]
    return values if spec.sample_axis == 0 else values.movedim(0, spec.sample_axis)
