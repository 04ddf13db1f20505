"""Histograms of activations against loops over samples and values."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_language_model

from guidedq.artifacts.activations import ActivationPlace
from guidedq.artifacts.samples import SampleSet
from guidedq.calibration.backward_pass import backward_pass
from guidedq.calibration.fisher import FisherGuide
from guidedq.calibration.hessian import HessianGuide
from guidedq.progress import SilentProgress
from guidedq.quant.integer import integer_grid, round_to_grid

PLACES = (
    ActivationPlace(name="mixed", operators=("up",), sites=("up.weight",)),
    ActivationPlace(name="hidden", operators=("down",), sites=("down.weight",)),
)


@pytest.fixture(scope="module")
def heard():
    """Every sample's inputs of both operators with their gradients, one backward pass a sample."""
    model = tiny_language_model()
    tokens = torch.randint(0, 24, (5, 7), generator=torch.Generator().manual_seed(0))
    samples = SampleSet(inputs={"input_ids": tokens})
    found = {name: [] for name in ("up", "down")}
    for number in range(len(samples)):

        def record(event):
            weight = model.program.parameter(f"{event.use.operator}.weight")
            found[event.use.operator].append((event.inputs.flatten(), (event.gradients @ weight).flatten()))

        sites = [model.graph.site(f"{name}.weight") for name in found]
        backward_pass(model, samples.part(number, number + 1), number, sites, record, seed=3)
    return model, samples, {name: tuple(map(torch.cat, zip(*pairs, strict=True))) for name, pairs in found.items()}


def test_a_histogram_counts_the_values_and_sums_their_squared_gradients(heard):
    model, samples, pairs = heard
    seen = FisherGuide().histograms(model, samples, PLACES, seed=3, progress=SilentProgress())
    for histogram, (values, gradients) in zip(seen, pairs.values(), strict=True):
        assert histogram.low == min(0.0, float(values.min()))
        assert histogram.high == max(0.0, float(values.max()))
        assert float(histogram.counts.sum()) == len(values)
        total = float(gradients.double().square().sum()) / samples.inputs["input_ids"].numel()
        assert float(histogram.sensitivity.sum()) == pytest.approx(total, rel=1e-4)


def test_the_cost_of_a_grid_is_half_the_squared_error_weighted_by_squared_gradients(heard):
    model, samples, pairs = heard
    seen = FisherGuide().histograms(model, samples, PLACES, seed=3, progress=SilentProgress())
    for histogram, (values, gradients) in zip(seen, pairs.values(), strict=True):
        grid = integer_grid(0.5 * histogram.low, 0.3 * histogram.high)
        errors = round_to_grid(values, grid) - values
        expected = 0.5 * float((gradients.double() * errors).square().sum()) / samples.inputs["input_ids"].numel()
        assert histogram.cost(grid) == pytest.approx(expected, rel=0.01)


def test_a_guide_without_gradients_has_no_sensitivities(heard):
    model, samples, _ = heard
    for histogram in HessianGuide().histograms(model, samples, PLACES, seed=3, progress=SilentProgress()):
        assert not bool(histogram.sensitivity.any())
        assert float(histogram.counts.sum()) > 0
