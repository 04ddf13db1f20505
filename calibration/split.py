"""The parts of one pool: which samples each gets, and that none which must be apart share a sample."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from guidedq.artifacts.samples import CalibrationSet, SampleSet
from guidedq.errors import CalibrationError
from guidedq.ir.model import Model, Objective

HELD_BACK = 10
"""One part in ten is held back for evaluation."""
SMALL_PARAMETERS = 4_000_000
"""Up to so many a sample takes a fraction of a second, and more can be had of them."""
PROBE_TOKENS = 2048
"""Of fewer, the forecast is a guess: of Whisper's 7 clips of 40 tokens it was a fifth too low."""


def measured_samples(model: Model) -> tuple[int, int]:
    """Samples for probes and for evaluation: a sequence is some hundred units of loss, any other sample is one."""
    small = model.parameters <= SMALL_PARAMETERS
    if model.objective is Objective.LANGUAGE_MODEL:
        return (24, 64) if small else (8, 16)
    return (256, 512) if small else (128, 512)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many samples are asked for, and how long a sequence may be.

    Attributes:
        samples: Calibration samples.
        tuning: Samples for what learns from many, the calibration's among them: what the pool has, up to so many.
        probe: Samples on which the forecast is calibrated.
        evaluation: Samples on which the loss is measured.
        sequence_length: Tokens of a sequence, the leading one included.
        probe_tokens: What the probes' sequences have at least, where the data say how long a sequence is.
    """

    samples: int
    tuning: int
    probe: int
    evaluation: int
    sequence_length: int
    probe_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "tuning", "probe", "evaluation", "sequence_length"):
            if getattr(self, name) < 1:
                raise CalibrationError(f"{name.replace('_', ' ')}: expected at least 1, found {getattr(self, name)}.")

    def shared_out(self, available: int) -> tuple[list[int], list[int], list[int]]:
        """Which of `available` shuffled samples (at least 2) are for calibration, for tuning, and for probes.

        As many as asked; else a third at most is for probes, and nothing is left for further tuning samples.
        """
        if available >= self.samples + self.probe:
            calibration, probe = self.samples, self.probe
        else:
            share = min(self.probe, max(1, self.samples // 2))
            probe = max(1, available * share // (self.samples + share))
            calibration = available - probe
        further = range(calibration + probe, min(available, max(calibration, self.tuning) + probe))
        first = range(calibration)
        return [*first], [*first, *further], [*range(calibration, calibration + probe)]


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers below `count` in an order given by the seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def kept_apart(
    calibration: SampleSet, tuning: SampleSet, probe: SampleSet, evaluation: SampleSet, *, source: str
) -> CalibrationSet:
    """The set of these parts, without what two of them share, but that calibration samples are for tuning too.

    Raises:
        CalibrationError: nothing is left of the probe or evaluation samples.
    """
    probe = without_samples_of(probe, calibration, part="probe")
    evaluation = without_samples_of(evaluation, calibration, probe, part="evaluation")
    return CalibrationSet(
        calibration=calibration,
        tuning=without_samples_of(tuning, probe, evaluation, part="tuning"),
        probe=probe,
        evaluation=evaluation,
        source=source,
    )


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
