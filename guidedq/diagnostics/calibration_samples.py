"""Are there samples enough to guide by?"""

from __future__ import annotations

from guidedq.artifacts.diagnostic import Diagnostic, at_least
from guidedq.artifacts.samples import SampleSet

FEWEST_SAMPLES = 16.0
"""A spread taken from 16 samples is known to a fifth, 1 / sqrt(2 x 15): with fewer, how noisy the guidance is is itself
unknown, and so is what the other checks make of it."""


def calibration_samples(calibration: SampleSet) -> Diagnostic:
    """How many samples the guidance was collected on."""
    return at_least(
        "calibration-samples",
        float(len(calibration)),
        FEWEST_SAMPLES,
        meaning="samples that the guidance was collected on",
        advice="Give more data, or ask for more samples (--samples).",
    )
