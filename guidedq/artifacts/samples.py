"""Inputs: a set of samples, and the calibration set made of several."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSet:
    """Named model inputs, stacked: every tensor is `[sample, ...]`.

    Attributes:
        inputs: What the program is called with.
        mask: True where a position is real, `[sample, position]`; `None` when nothing is padded.
        labels: Class of each sample or token ids of each position, if known.
    """

    inputs: Mapping[str, Tensor]
    mask: Tensor | None = None
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def tokens_per_sample(self) -> int:
        """Positions of one sample if the first input holds token ids, `[sample, position]`; else 1."""
        first = next(iter(self.inputs.values()))
        return first.shape[1] if first.dim() == 2 and not first.is_floating_point() else 1

    def batches(self, size: int) -> Iterator[SampleSet]:
        """Consecutive parts of at most `size` samples."""
        for start in range(0, len(self), size):
            yield self.part(start, start + size)

    def part(self, start: int, stop: int) -> SampleSet:
        """The samples `start` to `stop - 1`."""
        return SampleSet(
            inputs={name: values[start:stop] for name, values in self.inputs.items()},
            mask=None if self.mask is None else self.mask[start:stop],
            labels=None if self.labels is None else self.labels[start:stop],
        )

    def pick(self, indices: Int64[Tensor, "n"]) -> SampleSet:
        """The samples at these indices, in this order."""
        return SampleSet(
            inputs={name: values[indices] for name, values in self.inputs.items()},
            mask=None if self.mask is None else self.mask[indices],
            labels=None if self.labels is None else self.labels[indices],
        )

    @property
    def digest(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes, hex."""
        state = hashlib.sha256()
        tensors = {**self.inputs, "<mask>": self.mask, "<labels>": self.labels}
        for name in sorted(tensors):
            values = tensors[name]
            if values is not None:
                state.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
                state.update(values.contiguous().view(torch.uint8).numpy().tobytes() if values.numel() else b"")
        return state.hexdigest()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSet:
    """Three disjoint sample sets, and one that goes beyond the first.

    Attributes:
        calibration: Guidance is collected here.
        tuning: These and further ones, for what learns from many: what fits few samples does worse on others.
        probe: Held out from the guidance: the forecast is calibrated here.
        evaluation: Held out from everything: the loss is measured here.
        source: Where they came from, for the report.
    """

    calibration: SampleSet
    tuning: SampleSet
    probe: SampleSet
    evaluation: SampleSet
    source: str

    @property
    def digest(self) -> str:
        """SHA-256 of the parts, hex."""
        parts = (self.calibration, self.tuning, self.probe, self.evaluation)
        return hashlib.sha256(" ".join(part.digest for part in parts).encode()).hexdigest()
