"""The calibrated forecast on probes whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from guidedq.artifacts.forecast import Measurement, Probe
from guidedq.passes.forecast.calibration import calibrated
from guidedq.passes.forecast.loss import loss_gain


def probe(raw: float, kl: float, *, noise: float = 0.0, sequences: int = 16, seed: int = 0) -> Probe:
    generator = np.random.default_rng(seed)
    shape = 1.0 + noise * generator.standard_normal(sequences)
    measured = Measurement(
        kl=kl,
        loss_before=2.0,
        loss_after=2.0 + 0.8 * kl,
        agreement=0.9,
        accuracy_before=None,
        accuracy_after=None,
        units=8 * 512,
        kl_by_sample=tuple((kl * (1 + 0.1 * generator.standard_normal(8))).tolist()),
        loss_increase_by_sample=(0.8 * kl,) * 8,
    )
    by_sequence = tuple(raw * shape / shape.mean())
    return Probe(raw_kl_by_sequence=by_sequence, raw_kl=raw, measured=measured, bytes=1, counted_bytes=1)


def at(raw: float, probes: list[Probe], units: int = 8192):
    return calibrated([raw] * 16, probes, units, seed=0)


def test_it_passes_through_the_probes() -> None:
    probes = [probe(0.1, 0.2), probe(0.01, 0.015)]
    assert at(0.1, probes).kl == pytest.approx(0.2, rel=0.02)
    assert at(0.01, probes).kl == pytest.approx(0.015, rel=0.02)


def test_small_errors_are_quadratic_whatever_the_large_ones_do() -> None:
    probes = [probe(1.0, 1.6), probe(0.1, 0.107), probe(0.01, 0.01)]
    assert at(0.0001, probes).kl == pytest.approx(0.0001, rel=0.05)
    assert at(0.00001, probes).kl == pytest.approx(at(0.0001, probes).kl / 10, rel=0.02)


def test_growth_beyond_the_probes_goes_on() -> None:
    probes = [probe(0.8, 0.8 * 1.8**0.7), probe(0.3, 0.3 * 1.3**0.7), probe(0.01, 0.01)]
    assert at(1.2, probes).kl == pytest.approx(1.2 * 2.2**0.7, rel=0.1)


def test_the_interval_widens_away_from_the_probes() -> None:
    probes = [probe(0.1, 0.11), probe(0.01, 0.01)]
    widths = [np.log((found := at(raw, probes)).kl_high / found.kl_low) for raw in (0.01, 0.02, 2.0)]
    assert widths[0] < widths[1] < widths[2]


def test_without_probes_the_raw_prediction_stands() -> None:
    found = at(0.03, [])
    assert found.kl == pytest.approx(0.03)
    assert found.loss_increase == pytest.approx(0.03)


def test_a_steepness_that_only_noise_can_make_is_not_followed() -> None:
    probes = [probe(0.1, 0.2), probe(0.05, 0.02)]
    assert 1.2 < at(0.2, probes).kl / at(0.1, probes).kl < 3.0


def test_probes_of_one_size_give_a_ratio() -> None:
    assert at(0.04, [probe(0.02, 0.03), probe(0.02, 0.03)]).kl == pytest.approx(0.06, rel=0.02)


def test_the_interval_holds_the_forecast_and_widens_with_less_evaluation_data() -> None:
    probes = [probe(0.1, 0.2, noise=0.3), probe(0.01, 0.015, noise=0.3, seed=1)]
    much, little = at(0.05, probes, units=100_000), at(0.05, probes, units=200)
    for found in (much, little):
        assert found.kl_low < found.kl < found.kl_high
        assert found.loss_increase_low < found.loss_increase < found.loss_increase_high
    assert np.log(little.kl_high / little.kl_low) > np.log(much.kl_high / much.kl_low)


def test_noise_that_target_and_probes_share_cancels_from_the_interval() -> None:
    near = probe(0.05, 0.08, noise=0.5)
    shared = calibrated(near.raw_kl_by_sequence, [near], 100_000, seed=0)
    alien = calibrated(probe(0.05, 0.08, noise=0.5, seed=9).raw_kl_by_sequence, [near], 100_000, seed=0)
    assert np.log(shared.kl_high / shared.kl_low) < np.log(alien.kl_high / alien.kl_low)


def test_the_loss_follows_the_probes_own_ratio_of_loss_to_divergence() -> None:
    found = at(0.05, [probe(0.1, 0.2), probe(0.01, 0.015)])
    assert found.loss_increase == pytest.approx(0.8 * found.kl, rel=0.05)


def test_a_ratio_that_is_mostly_noise_is_drawn_to_one_and_widens_the_interval() -> None:
    clear = probe(0.1, 0.2)
    scattered = np.linspace(-6, 6, 8) + 0.8 * 0.2
    noisy = replace(clear, measured=replace(clear.measured, loss_increase_by_sample=tuple(scattered.tolist())))
    found, sure = at(0.1, [noisy]), at(0.1, [clear])
    assert found.loss_increase == pytest.approx(found.kl, rel=0.02)
    assert sure.loss_increase == pytest.approx(0.8 * sure.kl, rel=0.05)
    assert found.loss_increase_high - found.loss_increase_low > 2 * (sure.loss_increase_high - sure.loss_increase_low)


def test_the_same_seed_gives_the_same_interval() -> None:
    probes = [probe(0.1, 0.2, noise=0.2), probe(0.01, 0.015)]
    assert at(0.05, probes) == at(0.05, probes)


def test_probes_whose_samples_are_noisy_each_in_its_own_way_mend_each_other() -> None:
    raws = (0.01, 0.02, 0.05, 0.1)
    alone, together, widths = [], [], []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        probes = [with_samples(probe(raw, 1.5 * raw), 1.5 * raw * generator.gamma(0.1, 10.0, 64)) for raw in raws]
        alone.append(np.log(at(0.05, [probes[2]], 100_000).kl / 0.075))
        found = at(0.05, probes, 100_000)
        together.append(np.log(found.kl / 0.075))
        widths.append(np.log(found.kl_high / found.kl_low))
    assert np.std(together) < 0.75 * np.std(alone)
    inside = np.abs(together) < np.array(widths) / 2
    assert 0.8 <= inside.mean() <= 1.0


def test_noise_that_all_probes_share_is_not_taken_for_agreement() -> None:
    samples = np.random.default_rng(0).gamma(0.1, 10.0, 64)
    probes = [with_samples(probe(raw, 1.5 * raw), 1.5 * raw * samples) for raw in (0.01, 0.05)]
    one, both = at(0.05, [probes[1]]), at(0.05, probes)
    assert both.kl == pytest.approx(one.kl, rel=0.02)
    assert np.log(both.kl_high / both.kl_low) > 0.9 * np.log(one.kl_high / one.kl_low)


def test_a_model_surer_than_it_is_right_is_believed_to_lose_less() -> None:
    clear = probe(0.1, 0.2)
    noise = np.linspace(-6, 6, 8)
    noisy = replace(clear.measured, loss_increase_by_sample=tuple((noise + 0.2).tolist()), entropy=2.0)
    calm = at(0.1, [replace(clear, measured=noisy)])
    sure = at(0.1, [replace(clear, measured=replace(noisy, entropy=0.5))])
    assert calm.loss_increase == pytest.approx(calm.kl, rel=0.05)
    assert sure.loss_increase < 0.6 * sure.kl
    hopeless = at(0.1, [replace(clear, measured=replace(noisy, entropy=1e-6))])
    assert hopeless.loss_increase > -0.1 * hopeless.kl


def test_what_the_loss_gains_by_its_own_gradient_is_one_models_alone() -> None:
    small = probe(0.001, 0.001)
    sure = tuple(np.linspace(0.0029, 0.0031, 8).tolist())
    measured = replace(small.measured, loss_after=2.003, loss_increase_by_sample=sure)
    steep = replace(small, measured=measured)
    itself, another = at(0.001, [steep]), at(0.0005, [steep])
    assert itself.loss_increase > 2.5 * itself.kl
    assert another.loss_increase < 1.5 * another.kl
    assert another.loss_increase_low < 0 < another.loss_increase_high


def test_without_labels_the_loss_is_the_divergence() -> None:
    bare = probe(0.1, 0.2)
    alike = replace(bare.measured, loss_after=2.2, loss_increase_by_sample=bare.measured.kl_by_sample)
    found = at(0.05, [replace(bare, measured=alike)])
    assert found.loss_increase == pytest.approx(found.kl)
    assert found.loss_increase_high == pytest.approx(found.kl_high, rel=0.02)


def with_samples(given: Probe, values: np.ndarray) -> Probe:
    """The probe with the divergences of its samples, and their mean for its own."""
    kl = float(values.mean())
    samples = tuple(values.tolist())
    measured = replace(given.measured, kl=kl, kl_by_sample=samples, loss_increase_by_sample=samples)
    return replace(given, measured=measured)


@pytest.mark.parametrize("samples", [1, 3, 6])
def test_the_interval_holds_its_share_of_cases_however_few_the_samples(samples: int) -> None:
    generator = np.random.default_rng(5)
    tokens, spread, held = 256, 2.0, 0
    for _ in range(200):
        found = 0.1 * (1 + spread / np.sqrt(tokens) * generator.standard_normal(samples))
        measured = replace(
            probe(0.1, float(found.mean())).measured,
            units=samples * tokens,
            kl_by_sample=tuple(found.tolist()),
            loss_increase_by_sample=tuple((0.8 * found).tolist()),
        )
        forecast = at(0.1, [replace(probe(0.1, 0.1), measured=measured)], samples * tokens)
        truth = 0.1 * (1 + spread / np.sqrt(samples * tokens) * generator.standard_normal())
        held += forecast.kl_low <= truth <= forecast.kl_high
    assert 0.85 <= held / 200 <= 0.98


def test_of_one_sample_the_labels_chance_is_that_of_a_model_that_is_right() -> None:
    measured = replace(
        probe(0.1, 0.1).measured, units=2048, kl_by_sample=(0.1,), loss_increase_by_sample=(0.08,), loss_after=2.08
    )
    gain = loss_gain(0.1, [replace(probe(0.1, 0.1), measured=measured)])
    assert gain.noise == pytest.approx(np.sqrt(2))
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.ones(50))
    q = p * np.exp(0.05 * generator.standard_normal(50))
    q /= q.sum()
    ratio = np.log(p / q)
    assert np.sqrt(p @ ratio**2 - (p @ ratio) ** 2) == pytest.approx(gain.noise * np.sqrt(p @ ratio), rel=0.05)


def test_a_model_whose_allocations_differ_much_is_taken_at_its_own_probes_word() -> None:
    others = [probe(0.1, 0.13), probe(0.01, 0.012), probe(0.001, 0.0012)]
    assert at(0.004, [*others, probe(0.004, 0.005)]).kl == pytest.approx(0.005, rel=0.05)
    assert at(0.004, [*others, probe(0.004, 0.024)]).kl == pytest.approx(0.024, rel=0.1)
    usual, beside = at(0.005, others), at(0.005, [*others, probe(0.004, 0.024)])
    assert beside.kl_high / beside.kl_low > 1.5 * usual.kl_high / usual.kl_low
