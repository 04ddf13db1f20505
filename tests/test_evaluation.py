"""Measurements against slow, obvious twins."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guidedq import evaluation
from guidedq.artifacts.samples import SampleSet
from guidedq.errors import CalibrationError
from guidedq.evaluation import measure
from guidedq.ir.model import Objective
from guidedq.ir.program import TorchProgram
from guidedq.progress import SilentProgress


class Table(torch.nn.Module):
    """Answers sample i (its first token or value) with row i of `outputs`."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, **inputs):
        return self.outputs[next(iter(inputs.values()))[:, 0].long()]


def measured(original, quantized, samples, objective, batch_size=1):
    first, second = (TorchProgram(module=Table(outputs)) for outputs in (original, quantized))
    return measure(
        samples,
        objective,
        predict_original=first.predict,
        predict_quantized=second.predict,
        batch_size=batch_size,
        progress=SilentProgress(),
    )


def tokens_of(count, length, classes, seed=0):
    tokens = torch.randint(classes, (count, length), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = torch.arange(count)
    return tokens


def logits(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


@given(seed=st.integers(0, 1000), padded=st.booleans(), batch_size=st.integers(1, 4), chunk=st.sampled_from([7, 10**6]))
def test_language_model_equals_a_loop_over_positions(seed, padded, batch_size, chunk):
    p, q, tokens = logits(seed, 3, 5, 6), logits(seed + 1, 3, 5, 6), tokens_of(3, 5, 6, seed)
    mask = torch.arange(5)[None] < torch.tensor([5, 3, 4])[:, None] if padded else None
    kls, before, after, agree, right = [], [], [], [], []
    for i in range(3):
        for t in range(5):
            if mask is not None and not mask[i, t]:
                continue
            a, b = p[i, t].double().softmax(0), q[i, t].double().softmax(0)
            kls.append((i, float((a * (a / b).log()).sum())))
            agree.append(float(a.argmax() == b.argmax()))
            if t + 1 < 5 and (mask is None or mask[i, t + 1]):
                before.append(-float(a[tokens[i, t + 1]].log()))
                after.append(-float(b[tokens[i, t + 1]].log()))
                right.append(float(a.argmax() == tokens[i, t + 1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "CHUNK_ELEMENTS", chunk)
        samples = SampleSet(inputs={"input_ids": tokens}, mask=mask)
        found = measured(p, q, samples, Objective.LANGUAGE_MODEL, batch_size)
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    assert found.units == len(kls)
    assert found.kl == pytest.approx(mean([kl for _, kl in kls]), rel=1e-4, abs=1e-6)
    for i in range(3):
        assert found.kl_by_sample[i] == pytest.approx(mean([kl for j, kl in kls if j == i]), rel=1e-4, abs=1e-6)
    assert (found.loss_before, found.loss_after) == pytest.approx((mean(before), mean(after)), rel=1e-4)
    assert found.agreement == pytest.approx(mean(agree))
    assert found.accuracy_before == pytest.approx(mean(right))


def test_classifier_with_labels_is_cross_entropy_and_accuracy():
    p, q, labels = logits(0, 8, 4), logits(1, 8, 4), torch.randint(4, (8,))
    samples = SampleSet(inputs={"x": torch.arange(8.0)[:, None]}, labels=labels)
    found = measured(p, q, samples, Objective.CLASSIFIER, 3)
    assert found.loss_before == pytest.approx(float(torch.nn.functional.cross_entropy(p, labels)), rel=1e-5)
    assert found.loss_after == pytest.approx(float(torch.nn.functional.cross_entropy(q, labels)), rel=1e-5)
    assert found.accuracy_after == pytest.approx(float((q.argmax(1) == labels).float().mean()))
    assert found.units == 8


def test_classifier_without_labels_starts_at_its_entropy_and_increases_by_the_divergence():
    p, q = logits(0, 8, 4), logits(1, 8, 4)
    found = measured(p, q, SampleSet(inputs={"x": torch.arange(8.0)[:, None]}), Objective.CLASSIFIER)
    entropy = torch.distributions.Categorical(logits=p).entropy().mean()
    assert found.loss_before == pytest.approx(float(entropy), rel=1e-5)
    assert found.loss_increase == pytest.approx(found.kl, rel=1e-5)
    assert found.accuracy_before is None


def test_values_are_half_the_relative_squared_error_of_what_is_not_masked():
    p, q = logits(0, 2, 3, 4), logits(1, 2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    found = measured(p, q, SampleSet(inputs={"x": torch.arange(2.0)[:, None]}, mask=mask), Objective.VALUES)
    parts = [(p[0, :2], q[0, :2]), (p[1], q[1])]
    expected = [0.5 * float((a - b).square().sum() / a.square().sum()) for a, b in parts]
    cosines = [float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)) for a, b in parts]
    assert found.kl_by_sample == pytest.approx(tuple(expected), rel=1e-5)
    assert found.agreement == pytest.approx(sum(cosines) / 2, rel=1e-5)
    assert (found.loss_before, found.loss_after) == (0.0, found.kl)


@pytest.mark.parametrize("objective", list(Objective))
def test_a_model_is_no_distance_from_itself(objective):
    outputs = logits(0, 3, 6) if objective is Objective.CLASSIFIER else logits(0, 3, 5, 6)
    found = measured(outputs, outputs, SampleSet(inputs={"input_ids": tokens_of(3, 5, 6)}), objective)
    assert found.kl == 0
    assert found.loss_before == found.loss_after
    assert found.agreement == pytest.approx(1.0)


def test_classes_that_are_ruled_out_add_nothing():
    p = logits(0, 1, 5, 6)
    p[..., 5] = -math.inf
    found = measured(p, p + 0.0, SampleSet(inputs={"input_ids": tokens_of(1, 5, 5)}), Objective.LANGUAGE_MODEL)
    assert found.kl == 0
    assert math.isfinite(found.loss_before)


def test_quantized_output_that_is_no_number_is_infinitely_far():
    p, q = logits(0, 2, 5, 6), logits(0, 2, 5, 6)
    q[1, 2, 3] = math.nan
    found = measured(p, q, SampleSet(inputs={"input_ids": tokens_of(2, 5, 6)}), Objective.LANGUAGE_MODEL)
    assert found.kl_by_sample[1] == found.kl == found.loss_after == math.inf
    assert found.kl_by_sample[0] == 0


def test_original_output_that_is_no_number_is_an_error_naming_the_sample():
    p = logits(0, 2, 5, 6)
    p[1, 2, 3] = math.nan
    with pytest.raises(CalibrationError, match="sample 1"):
        measured(p, p, SampleSet(inputs={"input_ids": tokens_of(2, 5, 6)}), Objective.LANGUAGE_MODEL)


def test_label_beyond_the_classes_is_an_error():
    samples = SampleSet(inputs={"x": torch.zeros(1, 1)}, labels=torch.tensor([4]))
    with pytest.raises(CalibrationError, match="label 4"):
        measured(logits(0, 1, 4), logits(0, 1, 4), samples, Objective.CLASSIFIER)
