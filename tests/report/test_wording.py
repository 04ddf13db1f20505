import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_reports import forecast, latency_facts, sample_report

from guidedq.artifacts.report import MeasuredFacts
from guidedq.report.wording import (
    bytes_text,
    forecast_text,
    format_text,
    latency_text,
    loss_text,
    mixture_text,
    perplexity,
    seconds_text,
    signed_text,
    verdict,
)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.000 kB"), (3_412_000, "3.412 MB"), (2 * 10**9, "2.000 GB")]
)
def test_bytes_are_spelled_in_powers_of_ten(size: int, text: str) -> None:
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.417, "0.42 s"), (12.34, "12.3 s"), (200.0, "3 min 20 s"), (119.6, "2 min 00 s"), (3900.0, "1 h 05 min")],
)
def test_seconds_are_spelled_in_the_unit_that_people_use(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@given(st.floats(min_value=1e-9, max_value=1e4))
def test_a_spelled_loss_is_within_a_twentieth_of_the_loss(loss: float) -> None:
    assert float(loss_text(loss)) == pytest.approx(loss, rel=0.05)


@given(st.floats(min_value=-100, max_value=100))
def test_a_change_always_shows_its_sign(change: float) -> None:
    assert signed_text(change)[0] == ("-" if change < 0 else "+")


def test_what_is_no_number_is_spelled_in_words() -> None:
    assert (loss_text(math.inf), loss_text(math.nan), loss_text(0.0)) == ("infinite", "undefined", "0")


def test_perplexity_of_an_immense_loss_is_infinite_and_no_error() -> None:
    assert perplexity(1e6) == math.inf
    assert perplexity(math.log(8.0)) == pytest.approx(8.0)


def test_the_forecast_line_says_size_loss_and_interval() -> None:
    line = forecast_text(forecast(0.02), 4000, 8000, "nats/token")
    for part in ("4.000 bits", "4.000 kB", "0.0200", "0.0160 to 0.0260", "+0.0180", "nats/token", "90%"):
        assert part in line


@pytest.mark.parametrize(("kl", "word"), [(0.0119, "inside"), (0.001, "below"), (0.5, "above"), (math.inf, "above")])
def test_the_verdict_compares_the_measurement_with_the_interval(kl: float, word: str) -> None:
    measured = MeasuredFacts(
        kl=kl, loss_before=1.0, loss_after=1.0, agreement=1.0, accuracy_before=None, accuracy_after=None, tokens=1
    )
    assert word in verdict(sample_report(measured=measured))


def test_formats_have_short_names() -> None:
    texts = ("affine{bits=3 group-size=64}", "affine{bits=4 group-size=0 symmetric}", "fp16", "entropy{bits=2.5}")
    short = ["3-bit/64", "4-bit per row symmetric", "fp16", "2.5-bit coded"]
    assert [format_text(text) for text in texts] == short
    assert mixture_text({texts[0]: 8}) == "3-bit/64"
    assert (
        mixture_text({texts[0]: 8, "affine{bits=5 group-size=32 outliers=2}": 2})
        == "3-bit/64: 8, 5-bit/32 +2 outliers: 2"
    )


def test_a_latency_is_told_as_foretold_and_as_measured() -> None:
    assert latency_text(latency_facts(0.625)) == (
        "0.600 times the original's forecast; 0.625 measured, 2 to 1.25 ms (one sample, 2 threads)"
    )
