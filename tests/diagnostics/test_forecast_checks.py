"""Each check of the forecast warns on a case made for it, and is silent on a healthy one."""

from __future__ import annotations

import math

import pytest
import torch

from guidedq.artifacts.allocation import Allocation, SiteAllocation
from guidedq.artifacts.diagnostic import at_least, at_most
from guidedq.artifacts.forecast import Forecast, Measurement, Probe
from guidedq.diagnostics.calibration_gap import calibration_gap
from guidedq.diagnostics.concentration import concentration
from guidedq.diagnostics.extrapolation import extrapolation
from guidedq.diagnostics.narrowest_formats import narrowest_formats
from guidedq.diagnostics.over_training import over_training
from guidedq.quant.formats import AffineFormat, FloatFormat

FORMATS = (AffineFormat(bits=2, group_size=32), AffineFormat(bits=2), AffineFormat(bits=4), FloatFormat())
MEASURED = Measurement(
    kl=0.1,
    loss_before=2.0,
    loss_after=2.1,
    agreement=0.9,
    accuracy_before=None,
    accuracy_after=None,
    units=100,
    kl_by_sample=(0.1,),
    loss_increase_by_sample=(0.1,),
)
PROBES = tuple(
    Probe(raw_kl_by_sequence=(raw,), raw_kl=raw, measured=MEASURED, bytes=100, counted_bytes=100) for raw in (0.2, 0.05)
)


def allocation(**sites: tuple[float, list[int]]) -> Allocation:
    """Each site with its distortion and the formats of its rows."""
    made = {
        name: SiteAllocation(formats=FORMATS, choice=torch.tensor(choice), bytes=1, distortion=distortion)
        for name, (distortion, choice) in sites.items()
    }
    return Allocation(sites=made, base_bytes=0)


def forecast(raw_kl: float, kl: float) -> Forecast:
    return Forecast(
        kl=kl,
        kl_low=kl,
        kl_high=kl,
        loss_increase=kl,
        loss_increase_low=kl,
        loss_increase_high=kl,
        raw_kl=raw_kl,
    )


def test_a_site_that_carries_the_forecast_is_named() -> None:
    rows = [2, 2]
    heavy = concentration(allocation(a=(0.8, rows), b=(0.1, rows), c=(0.1, rows)), {"a": 10, "b": 45, "c": 45})
    assert heavy.verdict == "warning" and heavy.number == pytest.approx(0.8)
    assert " a carries" in heavy.meaning and "--keep 'a'" in heavy.advice
    even = concentration(allocation(a=(0.4, rows), b=(0.3, rows), c=(0.3, rows)), {"a": 10, "b": 45, "c": 45})
    assert even.verdict == "fine"


def test_a_site_that_is_most_of_the_model_may_carry_most_of_the_forecast() -> None:
    rows = [2, 2]
    assert concentration(allocation(a=(0.8, rows), b=(0.2, rows)), {"a": 80, "b": 20}).verdict == "fine"
    assert concentration(allocation(a=(1.0, rows)), {"a": 80}).verdict == "fine"
    assert concentration(allocation(a=(0.0, rows), b=(0.0, rows)), {"a": 1, "b": 1}).verdict == "fine"


@pytest.mark.parametrize(("raw", "kl", "verdict"), [(0.1, 0.25, "fine"), (0.1, 0.5, "warning"), (0.5, 0.1, "warning")])
def test_probes_that_tell_another_story_are_warned_of(raw: float, kl: float, verdict: str) -> None:
    assert calibration_gap(forecast(raw, kl)).verdict == verdict


def test_divergences_of_rounding_errors_are_not_compared() -> None:
    assert calibration_gap(forecast(1e-9, 5e-7)).verdict == "fine"


def test_a_forecast_beyond_every_probe_is_warned_of() -> None:
    far, near = extrapolation(0.6, PROBES), extrapolation(0.21, PROBES)
    assert far is not None and far.verdict == "warning" and far.number == pytest.approx(3.0)
    assert near is not None and near.verdict == "fine"
    assert extrapolation(0.6, ()) is None


def test_rows_that_cannot_go_lower_are_warned_of_beyond_the_probes_only() -> None:
    low = allocation(a=(0.1, [0, 1, 2, 3]), b=(0.1, [2, 2]))
    beyond, within = narrowest_formats(low, 0.25, PROBES), narrowest_formats(low, 0.15, PROBES)
    assert beyond is not None and beyond.verdict == "warning" and beyond.number == pytest.approx(2 / 6)
    assert "(in 1 of 2 sites)" in beyond.meaning
    assert within is not None and within.verdict == "fine"
    high = narrowest_formats(allocation(a=(0.1, [2, 2])), 0.25, PROBES)
    assert high is not None and high.verdict == "fine"


def test_many_training_tokens_are_warned_of() -> None:
    llama_2, llama_3 = over_training(2e12, 7_000_000_000), over_training(15e12, 8_000_000_000)
    assert llama_2 is not None and llama_2.verdict == "fine"
    assert llama_3 is not None and llama_3.verdict == "warning" and llama_3.number == 1875
    assert over_training(None, 10) is None


def test_what_is_no_number_is_never_fine() -> None:
    for check in (at_most, at_least):
        assert check("a", math.nan, 1.0, meaning="", advice="").verdict == "warning"
        assert check("a", 1.0, 1.0, meaning="", advice="").verdict == "fine"
