"""Each check of the data warns on a case made for it, and is silent on a healthy one."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from jaxtyping import Int64
from tiny_models import tiny_language_model
from torch import Tensor

from guidedq.artifacts.forecast import Measurement
from guidedq.artifacts.samples import CalibrationSet, SampleSet
from guidedq.diagnostics.calibration_samples import calibration_samples
from guidedq.diagnostics.effective_samples import effective_samples
from guidedq.diagnostics.evaluation_noise import evaluation_noise
from guidedq.diagnostics.overlap import overlap
from guidedq.diagnostics.text_fit import text_fit
from guidedq.diagnostics.token_runs import RUN_TOKENS
from guidedq.evaluation import measure
from guidedq.ir.model import Objective
from guidedq.progress import SilentProgress

MEASURED = Measurement(
    kl=0.1,
    loss_before=2.0,
    loss_after=2.1,
    agreement=0.9,
    accuracy_before=None,
    accuracy_after=None,
    units=100,
    kl_by_sample=(0.1, 0.11, 0.09, 0.1),
    loss_increase_by_sample=(0.1, 0.1, 0.1, 0.1),
    entropy=1.95,
)


def tokens(count: int, length: int, seed: int) -> Int64[Tensor, "sample token"]:
    return torch.randint(0, 50, (count, length), generator=torch.Generator().manual_seed(seed))


def pictures(count: int, shape: tuple[int, ...], seed: int) -> SampleSet:
    return SampleSet(inputs={"x": torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))})


def samples(evaluation: Tensor, *, mask: Tensor | None = None) -> CalibrationSet:
    """Calibration on tokens of their own."""
    parts = {name: SampleSet(inputs={"input_ids": tokens(8, 64, seed)}) for seed, name in enumerate(("a", "b", "c"))}
    return CalibrationSet(
        calibration=parts["a"],
        tuning=parts["b"],
        probe=parts["c"],
        evaluation=SampleSet(inputs={"input_ids": evaluation}, mask=mask),
        source="",
    )


@pytest.mark.parametrize("part", ["calibration", "tuning", "probe"])
def test_text_that_repeats_elsewhere_is_warned_of(part: str) -> None:
    fresh = samples(tokens(8, 64, 9))
    seen = getattr(fresh, part).inputs["input_ids"]
    shifted = torch.cat((tokens(8, 3, 7), seen[:, :61]), dim=1)
    found, quiet = overlap(samples(shifted)), overlap(fresh)
    assert found is not None and found.verdict == "warning"
    assert found.number == pytest.approx((61 - RUN_TOKENS + 1) / (64 - RUN_TOKENS + 1))
    assert quiet is not None and quiet.verdict == "fine" and quiet.number == 0.0


def test_the_shared_runs_are_those_that_a_search_finds() -> None:
    evaluation = tokens(2, 80, 9)
    evaluation[0, 10:50] = samples(evaluation).tuning.inputs["input_ids"][3, 20:60]
    chosen = samples(evaluation)
    known = {
        tuple(row[start : start + RUN_TOKENS].tolist())
        for part in (chosen.calibration, chosen.tuning, chosen.probe)
        for row in part.inputs["input_ids"]
        for start in range(64 - RUN_TOKENS + 1)
    }
    runs = [tuple(row[s : s + RUN_TOKENS].tolist()) for row in evaluation for s in range(80 - RUN_TOKENS + 1)]
    found = overlap(chosen)
    assert found is not None and found.number == pytest.approx(sum(run in known for run in runs) / len(runs))
    assert found.number > 0


def test_padding_is_no_text() -> None:
    padded = torch.zeros(8, 64, dtype=torch.int64)
    mask = torch.arange(64).expand(8, 64) < RUN_TOKENS
    padded[:, :RUN_TOKENS] = tokens(8, RUN_TOKENS, 9)
    chosen = samples(padded, mask=mask)
    full = replace(chosen, calibration=chosen.evaluation)
    found, other = overlap(full), overlap(chosen)
    assert found is not None and found.number == 1.0
    assert other is not None and other.number == 0.0


def test_short_texts_have_no_runs() -> None:
    short = overlap(samples(tokens(8, 16, 0)))
    assert short is not None and short.verdict == "fine"


@pytest.mark.parametrize("shape", [(3, 8, 8), (40,)])
@pytest.mark.parametrize("part", ["calibration", "tuning", "probe"])
def test_pictures_and_features_that_nearly_equal_those_of_the_calibration_are_warned_of(
    shape: tuple[int, ...], part: str
) -> None:
    parts = {name: pictures(32, shape, seed) for seed, name in enumerate(("calibration", "tuning", "probe"))}
    fresh = CalibrationSet(**parts, evaluation=pictures(32, shape, 9), source="")
    known = parts[part].inputs["x"][:16]
    copies = torch.cat((known + 0.01 * torch.randn(known.shape), fresh.evaluation.inputs["x"][16:]))
    found = overlap(replace(fresh, evaluation=SampleSet(inputs={"x": copies})))
    assert found is not None and found.verdict == "warning" and found.number == pytest.approx(0.5)
    quiet = overlap(fresh)
    assert quiet is not None and quiet.verdict == "fine" and quiet.number == 0.0


def test_samples_of_few_values_are_not_compared() -> None:
    few = pictures(32, (3,), 0)
    assert overlap(CalibrationSet(calibration=few, tuning=few, probe=few, evaluation=few, source="")) is None
    assert effective_samples(few) == 32.0


@pytest.mark.parametrize(
    ("by_sample", "verdict"),
    [((0.1, 0.11, 0.09, 0.1), "fine"), ((0.0, 0.0, 0.0, 0.4), "warning"), ((0.1,), "warning"), ((0.0, 0.0), "fine")],
)
def test_a_measurement_that_hangs_on_few_samples_is_warned_of(by_sample: tuple[float, ...], verdict: str) -> None:
    measured = replace(MEASURED, kl_by_sample=by_sample)
    assert evaluation_noise(measured, float(len(by_sample))).verdict == verdict


def test_a_measurement_on_samples_that_are_alike_is_as_noisy_as_on_what_they_are_worth() -> None:
    measured = replace(MEASURED, kl_by_sample=(0.1, 0.2, 0.3, 0.4) * 16)
    full, alike, one = (evaluation_noise(measured, worth) for worth in (64.0, 4.0, 1.2))
    assert alike.number == pytest.approx(4.0 * full.number)
    assert (full.verdict, alike.verdict) == ("fine", "warning")
    assert (one.number, one.verdict) == (1.0, "warning")


def test_one_text_repeated_is_worth_few_samples_and_different_texts_are_worth_their_number() -> None:
    stream = tokens(1, 100, 5)[0].repeat(40)
    repeated = SampleSet(inputs={"input_ids": stream[: 64 * 60].view(64, 60)})
    found, quiet = (
        calibration_samples(repeated),
        calibration_samples(SampleSet(inputs={"input_ids": tokens(64, 60, 1)})),
    )
    assert found.verdict == "warning" and found.number < 5 and "differ more" in found.advice
    assert (quiet.verdict, quiet.number) == ("fine", 64.0)


@pytest.mark.parametrize("length", [60, 20])
def test_copies_of_texts_count_once(length: int) -> None:
    different = tokens(12, length, 1)
    copies = different.repeat(5, 1)
    copies[:, length // 2] = torch.arange(60)
    assert effective_samples(SampleSet(inputs={"input_ids": different.repeat(5, 1)})) == pytest.approx(12.0)
    assert 12.0 < effective_samples(SampleSet(inputs={"input_ids": copies})) < 36.0
    padded = SampleSet(inputs={"input_ids": torch.zeros(60, 64, dtype=torch.int64)}, mask=torch.zeros(60, 64).bool())
    assert effective_samples(padded) == 60.0


def test_the_likeness_of_texts_is_that_of_an_obvious_count() -> None:
    texts = tokens(5, 24, 3)
    texts[1, 4:] = texts[0, :20]
    texts[3] = texts[0]
    runs = [{tuple(text[start : start + 8].tolist()) for start in range(17)} for text in texts]
    alike = np.mean([len(one & other) / len(one) for one, other in itertools.permutations(runs, 2)])
    found = effective_samples(SampleSet(inputs={"input_ids": texts}))
    assert found == pytest.approx(5 / (1 + 4 * alike))
    assert found < 4


@pytest.mark.parametrize("shape", [(3, 8, 8), (40,)])
def test_noisy_copies_of_a_few_pictures_or_features_are_worth_these_few(shape: tuple[int, ...]) -> None:
    few = pictures(8, shape, 0).inputs["x"].repeat(12, *(1 for _ in shape))
    copies = SampleSet(inputs={"x": few + 0.01 * torch.randn(few.shape, generator=torch.Generator().manual_seed(1))})
    found, quiet = calibration_samples(copies), calibration_samples(pictures(96, shape, 0))
    assert found.verdict == "warning" and found.number == pytest.approx(8.0)
    assert (quiet.verdict, quiet.number) == ("fine", 96.0)


def test_copies_of_one_picture_are_known_without_any_other_to_compare_with() -> None:
    one = pictures(1, (3, 8, 8), 0).inputs["x"].repeat(64, 1, 1, 1)
    noisy = SampleSet(inputs={"x": one + 0.01 * torch.randn(one.shape, generator=torch.Generator().manual_seed(1))})
    assert effective_samples(noisy) == pytest.approx(1.0)


def test_samples_are_alike_only_if_all_that_they_are_made_of_is() -> None:
    pictured = pictures(1, (3, 8, 8), 0).inputs["x"].repeat(32, 1, 1, 1)
    assert effective_samples(SampleSet(inputs={"x": pictured})) == pytest.approx(1.0)
    asked = SampleSet(inputs={"x": pictured, "input_ids": tokens(32, 40, 2)})
    assert effective_samples(asked) == pytest.approx(32.0)


def test_text_that_the_model_does_not_expect_is_warned_of() -> None:
    far, near = text_fit(replace(MEASURED, loss_before=4.0)), text_fit(MEASURED)
    assert far is not None and far.verdict == "warning"
    assert near is not None and near.verdict == "fine" and near.number == pytest.approx(0.05)
    assert text_fit(replace(MEASURED, entropy=None)) is None


def test_the_measured_entropy_is_that_of_the_originals_output() -> None:
    model = tiny_language_model()
    given = SampleSet(inputs={"input_ids": tokens(3, 9, 1) % 24})
    logits = model.program.predict(given.inputs)
    predict = model.program.predict
    measured = measure(
        given,
        Objective.LANGUAGE_MODEL,
        predict_original=predict,
        predict_quantized=predict,
        progress=SilentProgress(),
    )
    expected = torch.distributions.Categorical(logits=logits.double()).entropy().mean()
    assert measured.entropy == pytest.approx(float(expected), rel=1e-5)
