"""Each check of the data warns on a case made for it, and is silent on a healthy one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from jaxtyping import Int64
from tiny_models import tiny_language_model
from torch import Tensor

from guidedq.artifacts.forecast import Measurement
from guidedq.artifacts.samples import CalibrationSet, SampleSet
from guidedq.diagnostics.evaluation_noise import evaluation_noise
from guidedq.diagnostics.overlap import RUN_TOKENS, overlap
from guidedq.diagnostics.text_fit import text_fit
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


def test_images_and_short_texts_have_no_runs() -> None:
    short = overlap(samples(tokens(8, 16, 0)))
    assert short is not None and short.verdict == "fine"
    pictures = SampleSet(inputs={"x": torch.rand(4, 3, 8, 8)})
    images = CalibrationSet(calibration=pictures, tuning=pictures, probe=pictures, evaluation=pictures, source="")
    assert overlap(images) is None


@pytest.mark.parametrize(
    ("by_sample", "verdict"),
    [((0.1, 0.11, 0.09, 0.1), "fine"), ((0.0, 0.0, 0.0, 0.4), "warning"), ((0.1,), "warning"), ((0.0, 0.0), "fine")],
)
def test_a_measurement_that_hangs_on_few_samples_is_warned_of(by_sample: tuple[float, ...], verdict: str) -> None:
    assert evaluation_noise(replace(MEASURED, kl_by_sample=by_sample)).verdict == verdict


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
