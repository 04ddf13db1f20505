"""Three disjoint parts of one pool: how many samples each gets, and that no two parts share a sample."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from guidedq.artifacts.samples import SampleSet
from guidedq.errors import CalibrationError

HELD_BACK = 10
"""One part in ten is held back for evaluation."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many samples are asked for, and how long a sequence may be.

    Attributes:
        samples: Calibration samples.
        probe: Samples on which the forecast is calibrated.
        evaluation: Samples on which the loss is measured.
        sequence_length: Tokens of a sequence, the leading one included.
    """

    samples: int
    probe: int
    evaluation: int
    sequence_length: int

    def __post_init__(self) -> None:
        for name in ("samples", "probe", "evaluation", "sequence_length"):
            if getattr(self, name) < 1:
                raise CalibrationError(f"{name.replace('_', ' ')}: expected at least 1, found {getattr(self, name)}.")

    def shared_out(self, available: int) -> tuple[int, int]:
        """Calibration and probe samples out of `available` (at least 2): as asked, else in the same proportion."""
        if available >= self.samples + self.probe:
            return self.samples, self.probe
        probe = max(1, available * self.probe // (self.samples + self.probe))
        return available - probe, probe


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers below `count` in an order given by the seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def without_samples_of(chosen: SampleSet, *others: SampleSet, part: str) -> SampleSet:
    """`chosen` without the samples that equal one in `others`, padding aside.

    Raises:
        CalibrationError: nothing is left; `part` says of what.
    """
    known = {fingerprint for other in others for fingerprint in _fingerprints(other)}
    kept = [index for index, fingerprint in enumerate(_fingerprints(chosen)) if fingerprint not in known]
    if not kept:
        raise CalibrationError(
            f"every {part} sample is also a calibration sample. Give more varied data, or other --eval-data."
        )
    return chosen if len(kept) == len(chosen) else pick(chosen, kept)


def pick(samples: SampleSet, indices: list[int]) -> SampleSet:
    """The samples at these indices, in this order."""
    return samples.pick(torch.tensor(indices, dtype=torch.int64))


def _fingerprints(samples: SampleSet) -> list[bytes]:
    """One hash a sample, over what is real in its inputs; masks themselves are left out."""
    return [
        hashlib.sha256(b"".join(_content(values[index], samples, index) for _, values in _inputs(samples))).digest()
        for index in range(len(samples))
    ]


def _inputs(samples: SampleSet) -> list[tuple[str, Tensor]]:
    return sorted((name, values) for name, values in samples.inputs.items() if not name.endswith("_mask"))


def _content(values: Tensor, samples: SampleSet, index: int) -> bytes:
    if samples.mask is not None and values.shape[:1] == samples.mask.shape[1:]:
        values = values[samples.mask[index]]
    return f"{tuple(values.shape)}".encode() + values.contiguous().numpy().tobytes()
