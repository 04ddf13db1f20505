"""Codes that learn from the divergence, against autograd and torch's own Adam."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import VOCABULARY, stacked_language_model, tiny_convolution, tiny_language_model
from torch import Tensor

from guidedq.artifacts.guidance import identity_guidance
from guidedq.artifacts.quantized_weight import EntropySegment, FloatSegment, QuantizedWeight, float_weight
from guidedq.artifacts.samples import SampleSet
from guidedq.calibration import code_tuner
from guidedq.calibration.code_tuner import CodeTuner
from guidedq.calibration.divergence import divergence_gradient
from guidedq.calibration.latent import LatentWeight, LatentWeights
from guidedq.calibration.untuned import NoTuner
from guidedq.evaluation import measure
from guidedq.ir.model import Model, Objective
from guidedq.ir.program import AbstractProgram, TorchProgram
from guidedq.passes.round.nearest import NearestRounder
from guidedq.progress import SilentProgress
from guidedq.quant.formats import AffineFormat, EntropyFormat, FloatFormat

COARSE = EntropyFormat(bits=2.0)
FIXED = AffineFormat(bits=2, group_size=4, outliers=1)


def tokens(samples: int = 6, length: int = 7, seed: int = 1) -> SampleSet:
    generator = torch.Generator().manual_seed(seed)
    return SampleSet(inputs={"input_ids": torch.randint(0, VOCABULARY, (samples, length), generator=generator)})


def filled(_: tuple[QuantizedWeight, ...]) -> int:
    """Any size is small enough, and none should grow."""
    return 0


def images(samples: int = 4) -> SampleSet:
    return SampleSet(inputs={"image": torch.randn(samples, 2, 9, 9, generator=torch.Generator().manual_seed(2))})


def rounded(model: Model, *formats: AffineFormat | EntropyFormat) -> tuple[QuantizedWeight, ...]:
    """Every site to the nearest codes, its rows in the formats by turns."""
    found: list[QuantizedWeight] = []
    for site in model.graph.quantizable:
        matrix, all_rows = model.matrix(site), torch.arange(site.rows)
        rows = [all_rows[index :: len(formats)] for index in range(len(formats))]
        guidance = identity_guidance(site.rows, site.columns)
        segments = tuple(NearestRounder().round(matrix, guidance, formats, rows, seed=0))
        found.append(QuantizedWeight(name=site.name, shape=(site.rows, site.columns), segments=segments))
    return tuple(found)


def stored(model: Model, weights: tuple[QuantizedWeight, ...]) -> dict[str, Tensor]:
    return {weight.name: model.graph.site(weight.name).stored(weight.dequantize()) for weight in weights}


def divergence(model: Model, weights: tuple[QuantizedWeight, ...], samples: SampleSet) -> float:
    values = stored(model, weights)
    return measure(
        samples,
        model.objective,
        predict_original=model.program.predict,
        predict_quantized=lambda batch: model.program.predict(batch, weights=values),
        progress=SilentProgress(),
    ).kl


def slow_divergence(objective: Objective, original: Tensor, quantized: Tensor, mask: Tensor | None) -> Tensor:
    """The definition, one sample and one position at a time."""
    if objective is Objective.VALUES:
        parts = []
        for index in range(len(original)):
            seen = torch.ones(original[index].shape[:1]) if mask is None else mask[index].float()
            before, after = original[index] * seen[:, None], quantized[index] * seen[:, None]
            parts.append(0.5 * (after - before).square().sum() / before.square().sum())
        return torch.stack(parts).mean()
    rows, other = original.flatten(0, -2), quantized.flatten(0, -2)
    if objective is Objective.JOINT_VALUES:  # which heed no mask
        parts = [
            0.5 * (after - before).square().sum() / before.square().sum()
            for before, after in zip(rows, other, strict=True)
        ]
        return torch.stack(parts).mean()
    chosen = range(len(rows)) if mask is None else mask.flatten().nonzero()[:, 0].tolist()
    parts = [(rows[i].softmax(-1) * (rows[i].log_softmax(-1) - other[i].log_softmax(-1))).sum() for i in chosen]
    return torch.stack(parts).mean()


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_is_that_of_the_divergence(objective: Objective, masked: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    shape = (3, 9) if objective is Objective.CLASSIFIER else (3, 5, 9)
    original, quantized = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    mask = None
    if masked and objective is not Objective.CLASSIFIER:
        mask = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    batch = SampleSet(inputs={"x": original}, mask=mask)
    leaf = quantized.clone().requires_grad_()
    expected = slow_divergence(objective, original, leaf, mask)
    expected.backward()
    got = divergence_gradient(objective, original, quantized, batch)
    assert got == pytest.approx(float(expected.detach()), rel=1e-5)
    assert leaf.grad is not None
    torch.testing.assert_close(quantized, leaf.grad, rtol=1e-4, atol=1e-7)


def test_chunks_of_logits_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    original, quantized = torch.randn(2, 11, 7), torch.randn(2, 11, 7)
    whole, parts = quantized.clone(), quantized.clone()
    batch = SampleSet(inputs={"x": original})
    first = divergence_gradient(Objective.LANGUAGE_MODEL, original, whole, batch)
    monkeypatch.setattr("guidedq.calibration.divergence.CHUNK_ELEMENTS", 20)
    second = divergence_gradient(Objective.LANGUAGE_MODEL, original, parts, batch)
    assert first == pytest.approx(second)
    torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize("start", [0.0, 0.9])
@pytest.mark.parametrize("format", [COARSE, FIXED], ids=str)
def test_numbers_start_within_the_cells_of_the_codes(format: AffineFormat | EntropyFormat, start: float) -> None:
    model = stacked_language_model()
    for weight in rounded(model, format):
        site = model.graph.site(weight.name)
        latent = LatentWeight(site, weight, model.matrix(site), start)
        assert torch.equal(latent.rounded(), weight.dequantize())
        assert torch.equal(latent.quantized().dequantize(), weight.dequantize())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("model", "batch"),
    [(tiny_language_model(), tokens()), (stacked_language_model(), tokens()), (tiny_convolution(), images())],
    ids=["tied", "stacked", "convolution"],
)
def test_each_weight_hears_its_whole_gradient_once(
    model: Model, batch: SampleSet, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(model.program, TorchProgram)
    monkeypatch.setattr(code_tuner, "recomputes", lambda _model: recompute)
    weights = rounded(model, COARSE, FIXED)
    heard: dict[str, Tensor] = {}

    def remember(self: LatentWeight, gradient: Tensor, step: int, rate: float, price: float) -> None:
        assert self.site.name not in heard
        heard[self.site.name] = self.site.stored(gradient).clone()

    monkeypatch.setattr(LatentWeight, "move", remember)
    latents = {
        weight.name: LatentWeight(
            model.graph.site(weight.name), weight, model.matrix(model.graph.site(weight.name)), 0.9
        )
        for weight in weights
    }
    got = code_tuner._step(model, model.program, batch, LatentWeights(latents, 1, 0.1))
    original = model.program.predict(batch.inputs)
    leaves = {name: values.clone().requires_grad_() for name, values in stored(model, weights).items()}
    with torch.enable_grad(), model.program.replaced(leaves):
        output = model.program.module(**batch.inputs)
        expected = slow_divergence(model.objective, original, output, None)
    expected.backward()
    assert got == pytest.approx(float(expected.detach()), rel=1e-4)
    assert list(heard) != [] and set(heard) == set(leaves)
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        torch.testing.assert_close(heard[name], leaf.grad, rtol=1e-3, atol=1e-6)


def test_steps_are_those_of_adam() -> None:
    model = stacked_language_model()
    site = model.graph.site("layers.0.0.weight")
    weight = next(weight for weight in rounded(model, COARSE) if weight.name == site.name)
    latent = LatentWeight(site, weight, model.matrix(site), 0.0)
    (segment,) = weight.segments
    assert isinstance(segment, EntropySegment)
    twin = torch.zeros(weight.shape, requires_grad=True)
    adam = torch.optim.Adam([twin], betas=(0.9, 0.95), eps=1e-30)
    generator = torch.Generator().manual_seed(4)
    for step, rate in enumerate((0.3, 0.2, 0.1), 1):
        gradient = torch.randn(weight.shape, generator=generator)
        latent.move(gradient, step, rate)
        adam.param_groups[0]["lr"] = rate
        twin.grad = gradient * segment.steps()
        adam.step()
    expected = torch.round(segment.codes.float() + twin.detach()).clamp(*segment.code_range)
    (now,) = latent.quantized().segments
    assert isinstance(now, EntropySegment)
    different = now.codes.float() != expected
    near_an_edge = ((twin.detach() + 0.5) % 1.0 - 0.5).abs() < 0.01  # moments are kept in 16 bits
    on_the_edge = (twin.detach().abs() % 1.0 - 0.5).abs() < 0.01
    assert not bool((different & ~on_the_edge & ~near_an_edge).any())
    assert bool((now.codes != segment.codes).any())


@pytest.mark.parametrize("format", [COARSE, FIXED], ids=str)
@pytest.mark.parametrize("build", [stacked_language_model, tiny_language_model])
def test_tuning_lowers_the_divergence_on_other_samples(build, format: AffineFormat | EntropyFormat) -> None:
    model = build()
    before = rounded(model, format)
    tuner = CodeTuner(steps=150, tokens=110)
    after = tuner.tune(model, tokens(300, seed=8), before, room=filled, seed=0, progress=SilentProgress())
    fresh = tokens(20, seed=9)
    assert divergence(model, after, fresh) < 0.95 * divergence(model, before, fresh)


def test_tuning_changes_codes_only_within_their_range_and_always_alike() -> None:
    model = stacked_language_model()
    before = rounded(model, COARSE, FIXED)
    tuner = CodeTuner(steps=10, tokens=28, rate=0.2)
    first, second, other = (
        tuner.tune(model, tokens(), before, room=filled, seed=seed, progress=SilentProgress()) for seed in (3, 3, 4)
    )
    changed = 0
    for old, new, again in zip(before, first, second, strict=True):
        assert (old.name, old.shape) == (new.name, new.shape)
        for one, two, three in zip(old.segments, new.segments, again.segments, strict=True):
            assert not isinstance(one, FloatSegment)
            assert not isinstance(two, FloatSegment)
            assert not isinstance(three, FloatSegment)
            assert torch.equal(two.codes, three.codes)
            least, most = one.code_range
            assert int(two.codes.min()) >= least
            assert int(two.codes.max()) <= most
            assert torch.equal(two.with_codes(one.codes).dequantize(), one.dequantize())
            changed += int((one.codes != two.codes).sum())
    assert changed > 0
    assert any(not torch.equal(a.dequantize(), b.dequantize()) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("share", [0.985, 1.015])
def test_codes_take_what_bytes_there_are(share: float) -> None:
    model = stacked_language_model()
    before = rounded(model, COARSE)
    tuner = CodeTuner(steps=60, tokens=110)
    given = share * entropy_bits(before)
    kept, told = (
        tuner.tune(model, tokens(300, seed=8), before, room=room, seed=0, progress=SilentProgress())
        for room in (filled, lambda weights: int((given - entropy_bits(weights)) // 8))
    )
    assert entropy_bits(told) <= given
    fresh = tokens(20, seed=9)
    losses = [divergence(model, weights, fresh) for weights in (kept, told, before)]
    assert (entropy_bits(told) > entropy_bits(kept)) == (share > 1)
    assert (losses[1] < losses[0]) == (share > 1)
    assert max(losses[:2]) < losses[2]


def entropy_bits(weights: tuple[QuantizedWeight, ...]) -> float:
    total = 0.0
    for segment in (segment for weight in weights for segment in weight.segments):
        assert isinstance(segment, EntropySegment)
        shares = segment.codes.flatten().bincount() / segment.codes.numel()
        total -= segment.codes.numel() * float(shares[shares > 0].log2() @ shares[shares > 0])
    return total


def test_weights_in_floating_point_stay() -> None:
    model = stacked_language_model()
    weights = rounded(model, COARSE)
    site = model.graph.site("head.weight")
    head = float_weight(site.name, model.matrix(site), FloatFormat(dtype="fp16"))
    mixed = (*weights[:-1], head)
    after = CodeTuner(steps=2, tokens=14).tune(model, tokens(), mixed, room=filled, seed=0, progress=SilentProgress())
    assert torch.equal(after[-1].dequantize(), head.dequantize())


def test_only_what_can_be_tuned_is() -> None:
    model = stacked_language_model()
    assert CodeTuner().tunes(model)
    assert not CodeTuner(steps=0).tunes(model)
    assert CodeTuner(largest=model.parameters).tunes(model)
    assert not CodeTuner(largest=model.parameters - 1).tunes(model)
    assert not NoTuner().tunes(model)
    forward_only = replace(model, program=_Undifferentiable())
    assert not CodeTuner().tunes(forward_only)


class _Undifferentiable(AbstractProgram):
    differentiable = False  # type: ignore[assignment]

    def parameter(self, name):
        raise NotImplementedError

    def operator(self, name):
        raise NotImplementedError

    def predict(self, batch, *, weights=None, activations=None):
        raise NotImplementedError

    def observe(self, batch, operators, *, weights=None):
        raise NotImplementedError
