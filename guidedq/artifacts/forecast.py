"""What is predicted, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Predicted loss of an allocation, in the objective's unit, with a 90% interval.

    Attributes:
        kl: Predicted divergence from the original's output, with its interval `kl_low` to `kl_high`.
        loss_increase: Predicted increase of the loss on data, with its interval.
        raw_kl: The prediction before calibration by probes.
        accuracy_drop: Predicted fall of the share of right predictions, with its interval; `None` without labels.
    """

    kl: float
    kl_low: float
    kl_high: float
    loss_increase: float
    loss_increase_low: float
    loss_increase_high: float
    raw_kl: float
    accuracy_drop: float | None = None
    accuracy_drop_low: float | None = None
    accuracy_drop_high: float | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A quantized model against its original on a sample set, in the objective's unit.

    Attributes:
        kl: Mean divergence of the quantized output from the original's.
        loss_before: Loss of the original on the data's labels (0 for values).
        loss_after: Loss of the quantized model.
        agreement: Share of predictions whose most likely class is the original's (cosine similarity for values).
        accuracy_before: Share of right predictions, where labels are given.
        accuracy_after: The same for the quantized model.
        units: Tokens or samples measured.
        kl_by_sample: `kl` of each sample.
        loss_increase_by_sample: Loss increase of each sample; 0 where a sample has no label.
        entropy: Mean entropy of the original's output; `None` where it is no distribution.
        regret_by_sample: What the quantized model's choices would cost of each sample's right predictions, were the
            original as sure as it is right: `p(its own choice) - p(the other's)`. Empty for values.
        accuracy_drop_by_sample: What they do cost, by the labels. Empty where there are none.
        uncertainty_by_sample: Gini impurity `1 - sum of p^2` of the original's output, mean over a sample's units.
            Empty for values.
    """

    kl: float
    loss_before: float
    loss_after: float
    agreement: float
    accuracy_before: float | None
    accuracy_after: float | None
    units: int
    kl_by_sample: tuple[float, ...]
    loss_increase_by_sample: tuple[float, ...]
    entropy: float | None = None
    regret_by_sample: tuple[float, ...] = ()
    accuracy_drop_by_sample: tuple[float, ...] = ()
    uncertainty_by_sample: tuple[float, ...] = ()

    @property
    def loss_increase(self) -> float:
        """Loss after minus before."""
        return self.loss_after - self.loss_before

    @property
    def accuracy_drop(self) -> float | None:
        """Accuracy before minus after, where labels are given."""
        if self.accuracy_before is None or self.accuracy_after is None:
            return None
        return self.accuracy_before - self.accuracy_after


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A whole quantized model measured before the compile decides: calibrates the forecast.

    Attributes:
        raw_kl_by_sequence: Its uncalibrated forecast for each kept sequence.
        raw_kl: Their mean.
        measured: On the probe samples.
        bytes: Of its weights file.
        counted_bytes: The same by the footprint, whose counts of entropy formats are estimates.
    """

    raw_kl_by_sequence: tuple[float, ...]
    raw_kl: float
    measured: Measurement
    bytes: int
    counted_bytes: int
