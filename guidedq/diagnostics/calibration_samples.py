"""Are there samples enough to guide by?"""

from __future__ import annotations

from guidedq.artifacts.diagnostic import Diagnostic, at_least
from guidedq.artifacts.samples import SampleSet
from guidedq.diagnostics.effective_samples import effective_samples

FEWEST_SAMPLES = 16.0
"""A spread taken from 16 samples is known to a fifth, 1 / sqrt(2 x 15): with fewer, how noisy the guidance is is itself
unknown, and so is what the other checks make of it."""


def calibration_samples(calibration: SampleSet) -> Diagnostic:
    """How many unlike samples those that the guidance was collected on are worth, to the next whole number."""
    count = len(calibration)
    worth = float(round(effective_samples(calibration)))
    return at_least(
        "calibration-samples",
        worth,
        FEWEST_SAMPLES,
        meaning=f"unlike samples that those which the guidance was collected on are worth (there are {count})",
        advice="Give more data, or ask for more samples (--samples)."
        if count < FEWEST_SAMPLES
        else "Give data that differ more: these repeat one another.",
    )
