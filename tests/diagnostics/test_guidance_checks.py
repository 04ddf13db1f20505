"""Each check of the guidance warns on a case made for it, and is silent on a healthy one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.guidance import AbstractGuidance, AbstractSequenceGradients, QuadraticTerm, SiteGuidance
from guidedq.artifacts.samples import SampleSet
from guidedq.diagnostics.activation_outliers import activation_outliers
from guidedq.diagnostics.calibration_samples import calibration_samples
from guidedq.diagnostics.curve_order import curve_order
from guidedq.diagnostics.guidance_agreement import guidance_agreement
from guidedq.diagnostics.shrinkage import shrinkage
from guidedq.ir.activation_rounding import ActivationRounding
from guidedq.ir.graph import Site, Use, UseKind
from guidedq.passes.allocate.shrinkage import shrinkage_scale
from guidedq.quant.formats import AffineFormat, EntropyFormat, FloatFormat, Format

THREE, FOUR, FIVE = (AffineFormat(bits=bits) for bits in (3, 4, 5))


def curve(levels: np.ndarray, noise: float = 0.0, formats: Mapping[Format, float] | None = None) -> SiteCurve:
    """Rows of these sensitivities; each format multiplies them."""
    factors = formats or {THREE: 1.0, FOUR: 0.25, FIVE: 0.06}
    distortion = np.outer(levels, list(factors.values())).astype(np.float32)
    return SiteCurve(
        name="site",
        formats=tuple(factors),
        distortion=torch.from_numpy(distortion),
        row_noise=torch.full((len(levels),), noise),
        entropy_bytes=torch.zeros(len(factors)),
        projections=None,
    )


def observed(rows: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True levels of a row spread by e, and what two halves of the samples say of them."""
    generator = np.random.default_rng(seed)
    level = generator.normal(0.0, 1.0, rows)
    halves = [level + generator.normal(0.0, np.sqrt(2.0) * noise, rows) for _ in range(2)]
    return (halves[0] + halves[1]) / 2.0, halves[0], halves[1]


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.6])
def test_the_agreement_is_the_correlation_of_two_halves(noise: float) -> None:
    whole, first, second = observed(20_000, noise, seed=3)
    relative = float(np.sqrt(np.expm1(noise**2)))
    found = guidance_agreement({"site": curve(np.exp(whole), relative)})
    assert found is not None
    assert found.number == pytest.approx(np.corrcoef(first, second)[0, 1], abs=0.02)


def test_noisy_guidance_is_warned_of_and_sharp_guidance_is_not() -> None:
    whole, *_ = observed(500, 0.1, seed=1)
    noisy, sharp = (guidance_agreement({"site": curve(np.exp(whole), noise)}) for noise in (0.6, 0.1))
    assert noisy is not None and noisy.verdict == "warning" and "--samples" in noisy.advice
    assert sharp is not None and sharp.verdict == "fine"


def test_a_guide_that_knows_no_noise_is_not_judged_by_it() -> None:
    assert guidance_agreement({"site": curve(np.ones(8))}) is None
    assert shrinkage({"site": curve(np.ones(8))}) is None


def test_the_shrinkage_reported_is_what_the_allocator_does() -> None:
    whole, *_ = observed(5000, 0.5, seed=2)
    level = np.exp(whole)
    found = shrinkage({"site": curve(level, 0.53)})
    assert found is not None
    change = np.log(shrinkage_scale(level[None].astype(np.float32), np.full(5000, 0.53, dtype=np.float32)))
    change -= change[np.abs(np.log(level) - np.log(level).mean()).argmin()]  # all rows together are left as they were
    assert found.number == pytest.approx(np.average(np.abs(change), weights=level), rel=0.01)


@pytest.mark.parametrize(
    ("spread", "noise", "verdict"), [(0.6, 0.5, "warning"), (0.6, 0.1, "fine"), (0.1, 0.1, "fine")]
)
def test_rows_are_warned_of_that_noise_makes_differ_but_not_rows_that_are_alike(
    spread: float, noise: float, verdict: str
) -> None:
    level = np.exp(np.random.default_rng(0).normal(0.0, spread, 300))
    found = shrinkage({"site": curve(level, noise)})
    assert found is not None and found.verdict == verdict


@pytest.mark.parametrize(
    ("formats", "verdict"),
    [
        ({THREE: 1.0, FOUR: 0.3, FIVE: 0.4}, "warning"),
        ({THREE: 1.0, FOUR: 0.3, FIVE: 0.31}, "fine"),
        ({EntropyFormat(bits=2.0): 1.0, EntropyFormat(bits=3.0): 1.2}, "warning"),
        (
            {FOUR: 1.0, AffineFormat(bits=5, group_size=128): 2.0, EntropyFormat(bits=6.0): 3.0, FloatFormat(): 4.0},
            "fine",
        ),
    ],
)
def test_more_bits_that_measured_worse_are_warned_of_in_formats_that_are_alike(
    formats: Mapping[Format, float], verdict: str
) -> None:
    found = curve_order({"a": curve(np.ones(4), formats=formats)})
    assert found.verdict == verdict
    assert ("(the first is a)" in found.meaning) == (verdict == "warning")


def test_few_samples_are_warned_of() -> None:
    def verdict(count: int) -> str:
        return calibration_samples(SampleSet(inputs={"x": torch.zeros(count, 2)})).verdict

    assert (verdict(15), verdict(16)) == ("warning", "fine")


class Guidance(AbstractGuidance):
    """Inputs of one site of these root mean squares."""

    def __init__(self, *sizes: float) -> None:
        self.sizes = torch.tensor(sizes)

    @property
    def units_per_sequence(self) -> float:
        return 1.0

    def site(self, name: str) -> SiteGuidance:
        term = QuadraticTerm(
            hessian=self.sizes.square().diag()[None],
            row_group=torch.zeros(2, dtype=torch.int64),
            row_weight=torch.ones(2),
            row_weight_error=torch.zeros(2),
        )
        return SiteGuidance(terms=(term,))

    def gradients(self, name: str) -> AbstractSequenceGradients | None:
        return None

    @property
    def facts(self) -> Mapping[str, float]:
        return {}


LINEAR = Site(name="up", shape=(2, 5), uses=(Use(operator="up", kind=UseKind.LINEAR),))
CONVOLUTION = Site(name="up", shape=(2, 5, 1), uses=(Use(operator="up", kind=UseKind.CONVOLUTION),))
BY_BLOCK, BY_TENSOR = ActivationRounding(operators={"up": 32}), ActivationRounding(rows={"up": 0})


@pytest.mark.parametrize(
    ("site", "rounding", "advice"),
    [
        (LINEAR, BY_BLOCK, "accuracy-level=1"),
        (LINEAR, BY_TENSOR, "--keep 'up'"),
        (CONVOLUTION, BY_TENSOR, "--keep 'up'"),
    ],
)
def test_an_outlier_is_warned_of_where_inputs_are_rounded(
    site: Site, rounding: ActivationRounding, advice: str
) -> None:
    outlier, calm = Guidance(1.0, 1.1, 300.0, 0.9, 1.0), Guidance(1.0, 1.1, 100.0, 0.9, 1.0)
    found = activation_outliers(outlier, [site], rounding)
    assert found is not None and found.verdict == "warning" and found.number == pytest.approx(300.0)
    assert advice in found.advice
    quiet = activation_outliers(calm, [site], rounding)
    assert quiet is not None and quiet.verdict == "fine"


@pytest.mark.parametrize("rounding", [None, ActivationRounding(), ActivationRounding(rows={"down": 0})])
def test_a_site_that_multiplies_in_floats_is_not_judged_by_outliers(rounding: ActivationRounding | None) -> None:
    assert activation_outliers(Guidance(1.0, 1.1, 300.0, 0.9, 1.0), [LINEAR], rounding) is None


def test_an_embedding_reads_no_activations() -> None:
    site = Site(name="embed", shape=(2, 5), uses=(Use(operator="up", kind=UseKind.EMBEDDING),))
    assert activation_outliers(Guidance(1.0, 1.0, 300.0, 1.0, 1.0), [site], BY_BLOCK) is None


def test_inputs_that_are_never_seen_are_no_outliers() -> None:
    found = activation_outliers(Guidance(0.0, 0.0, 0.0, 0.0, 0.0), [LINEAR], BY_BLOCK)
    assert found is not None and found.verdict == "fine"
