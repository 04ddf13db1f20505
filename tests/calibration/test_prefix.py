"""Original and quantized model side by side, and what sites are rounded to behind a quantized prefix."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import VOCABULARY, stacked_language_model, tiny_convolution, tiny_language_model
from tiny_transformers import save_tiny_transformer
from torch import Tensor, nn

from guidedq.artifacts.quantized_weight import QuantizedWeight, float_weight
from guidedq.artifacts.samples import SampleSet
from guidedq.calibration import prefix
from guidedq.calibration.prefix import PrefixCorrector
from guidedq.calibration.side_by_side import Reading, run_side_by_side, separable_sites
from guidedq.calibration.uncorrected import NoCorrector
from guidedq.frontend import load
from guidedq.ir.graph import Site, Use
from guidedq.ir.model import Model
from guidedq.ir.patches import convolution_patches
from guidedq.ir.program import TorchProgram
from guidedq.quant.formats import FloatFormat

EXACT = FloatFormat(dtype="fp32")
NOISE = 0.2


def tokens(samples: int = 40, length: int = 7) -> SampleSet:
    generator = torch.Generator().manual_seed(1)
    return SampleSet(inputs={"input_ids": torch.randint(0, VOCABULARY, (samples, length), generator=generator)})


def images(samples: int = 64) -> SampleSet:
    return SampleSet(inputs={"image": torch.randn(samples, 2, 9, 9, generator=torch.Generator().manual_seed(2))})


def worsened(matrix: Tensor, name: str) -> Tensor:
    """A rounding that is wide off the mark, the same for a site each time."""
    generator = torch.Generator().manual_seed(len(name))
    return matrix + NOISE * matrix.std() * torch.randn(matrix.shape, generator=generator)


class Rounding:
    """Worsens what it is given, and remembers it."""

    def __init__(self) -> None:
        self.targets: dict[str, Tensor] = {}
        self.weights: dict[str, QuantizedWeight] = {}

    def __call__(self, site: Site, matrix: Tensor) -> QuantizedWeight:
        assert site.name not in self.targets
        self.targets[site.name] = matrix
        self.weights[site.name] = float_weight(site.name, worsened(matrix, site.name), EXACT)
        return self.weights[site.name]


def observed(model: Model, batch: SampleSet, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    uses = {use.operator: None for site in model.graph.quantizable for use in site.uses}
    return dict(model.program.observe(batch.inputs, uses, weights=weights))


@pytest.mark.parametrize(
    ("model", "batch"),
    [(stacked_language_model(), tokens()), (tiny_convolution(), images())],
    ids=["language", "convolution"],
)
@pytest.mark.parametrize("size", [64, 13, 1])
def test_both_models_see_what_they_see_alone(model: Model, batch: SampleSet, size: int) -> None:
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    weights = {site.name: site.stored(worsened(model.matrix(site), site.name)) for site in model.graph.sites}

    def visit(site: Site, use: Use, readings: Sequence[Reading]) -> Tensor:
        originals, quantized = zip(*((reading.original, reading.quantized) for reading in readings), strict=True)
        seen[use.operator] = torch.cat(originals), torch.cat(quantized)
        return weights[site.name]

    run_side_by_side(model, list(batch.batches(size)), visit)
    before, behind = observed(model, batch), observed(model, batch, weights)
    assert list(seen) == [site.uses[0].operator for site in model.graph.sites]
    for operator, (original, quantized) in seen.items():
        torch.testing.assert_close(original, before[operator])
        torch.testing.assert_close(quantized, behind[operator])


def test_a_tied_weight_is_asked_for_at_each_use_until_all_are_known() -> None:
    model, asked = tiny_language_model(), []

    def visit(site: Site, use: Use, readings: Sequence[Reading]) -> Tensor:
        asked.append(use.operator)
        return model.program.parameter(site.name)

    run_side_by_side(model, [tokens(), tokens(3)], visit)
    assert asked == ["embed", "up", "down"]  # and not the head, whose weight is that of the embedding


def test_the_module_is_left_as_it_was_when_the_visitor_fails() -> None:
    model, threads = stacked_language_model(), threading.active_count()
    before = model.program.predict(tokens().inputs)

    def visit(site: Site, use: Use, readings: Sequence[Reading]) -> Tensor:
        if use.operator == "layers.1.0":
            raise KeyboardInterrupt
        return torch.zeros(site.shape)

    with pytest.raises(KeyboardInterrupt):
        run_side_by_side(model, list(tokens().batches(16)), visit)
    assert threading.active_count() == threads
    assert isinstance(model.program, TorchProgram)
    assert not any("forward" in module.__dict__ for module in model.program.module.modules())
    assert torch.equal(model.program.predict(tokens().inputs), before)


def test_what_fails_in_the_model_is_raised_where_it_is_run() -> None:
    model, threads = tiny_language_model(), threading.active_count()
    handle = model.program.operator("down").register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), handle:
        run_side_by_side(model, list(tokens().batches(16)), lambda site, use, _: torch.zeros(site.shape))
    assert threading.active_count() == threads


class Turned(nn.Module):
    """The first linear layer reads tokens first and samples second, the second one as usual."""

    def __init__(self, original: nn.Module, samples: int | None = None) -> None:
        super().__init__()
        self.embed, self.up, self.down, self.head = (
            original.get_submodule(name) for name in ("embed", "up", "down", "head")
        )
        self._samples = samples

    def forward(self, input_ids: Tensor) -> Tensor:
        if self._samples is not None:
            input_ids = input_ids.reshape(self._samples, 6)
        hidden = self.embed(input_ids)
        hidden = self.up(hidden.transpose(0, 1)).transpose(0, 1)
        return self.head(self.down(hidden))


def test_sites_whose_input_starts_with_another_axis_keep_their_weight() -> None:
    model = tiny_language_model()
    assert isinstance(model.program, TorchProgram)
    turned = replace(model, program=TorchProgram(module=Turned(model.program.module)))
    assert [site.name for site in separable_sites(turned, tokens(1, 6))] == ["embed.weight", "down.weight"]


def test_a_model_of_one_batch_size_has_no_site_to_run_side_by_side() -> None:
    model = tiny_language_model()
    assert isinstance(model.program, TorchProgram)
    fixed = replace(model, program=TorchProgram(module=Turned(model.program.module, samples=1)))
    assert separable_sites(fixed, tokens(1, 6)) == ()
    rounding = Rounding()
    weights = list(PrefixCorrector().rounded(fixed, tokens(4, 6), rounding))
    assert [weight.name for weight in weights] == [site.name for site in fixed.graph.sites]
    for site in fixed.graph.sites:
        assert torch.equal(rounding.targets[site.name], fixed.matrix(site))


def best_weight(matrix: Tensor, x: Tensor, z: Tensor, ridge: float) -> Tensor:
    """The `V` of least `|W x - V z|^2 + damping |V - W|^2`, by the normal equations' slow twin."""
    damping = (ridge * z.square().mean(0).mean() * len(z)).sqrt()
    inputs = torch.cat((z, damping * torch.eye(z.shape[1])))
    outputs = torch.cat((x @ matrix.t(), damping * matrix.t()))
    return torch.linalg.lstsq(inputs.double(), outputs.double()).solution.t().float()


@pytest.mark.parametrize("ridge", [0.1, 0.003])
def test_linear_sites_are_rounded_to_the_best_weight_behind_the_prefix(
    ridge: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix, "RIDGES", (ridge,))
    model, batch, rounding = stacked_language_model(), tokens(), Rounding()
    weights = list(PrefixCorrector().rounded(model, batch, rounding))
    assert [weight.name for weight in weights] == [site.name for site in model.graph.sites]
    stored = {site.name: site.stored(rounding.weights[site.name].dequantize()) for site in model.graph.sites}
    before, behind = observed(model, batch), observed(model, batch, stored)
    assert torch.equal(rounding.targets["embed.weight"], model.matrix(model.graph.site("embed.weight")))
    for site in model.graph.sites[1:]:
        x, z = (seen[site.uses[0].operator].reshape(-1, site.columns) for seen in (before, behind))
        expected = best_weight(model.matrix(site), x, z, ridge)
        torch.testing.assert_close(rounding.targets[site.name], expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(expected, model.matrix(site), rtol=1e-2)


def test_convolutions_are_corrected_on_their_patches_and_grouped_ones_are_not() -> None:
    model, batch, rounding = tiny_convolution(), images(), Rounding()
    first = model.graph.site("first.weight")
    list(PrefixCorrector().rounded(model, batch, rounding))
    assert torch.equal(rounding.targets["first.weight"], model.matrix(first))  # nothing is quantized before it
    grouped = model.graph.site("grouped.weight")
    assert torch.equal(rounding.targets["grouped.weight"], model.matrix(grouped))
    assert not torch.equal(rounding.targets["classify.weight"], model.matrix(model.graph.site("classify.weight")))


def test_patches_are_those_of_the_second_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "RIDGES", (0.1,))
    model, batch, rounding = tiny_convolution(), images(), Rounding()
    sites = tuple(
        replace(site, input_groups=1) if site.name == "grouped.weight" else site for site in model.graph.sites
    )
    module = nn.Sequential()  # two plain convolutions
    module.first, module.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3, padding=1)
    module.forward = lambda image: module.second(module.first(image)).mean((2, 3))  # type: ignore[method-assign]
    uses = {site.name: site.uses[0].kind for site in sites}
    plain = tuple(
        Site(name=f"{name}.weight", shape=tuple(getattr(module, name).weight.shape),
             uses=(Use(operator=name, kind=uses["first.weight"]),))
        for name in ("first", "second")
    )  # fmt: skip
    convolutions = replace(
        model, graph=replace(model.graph, sites=plain), program=TorchProgram(module=module.requires_grad_(False))
    )
    list(PrefixCorrector().rounded(convolutions, batch, rounding))
    stored = {site.name: site.stored(rounding.weights[site.name].dequantize()) for site in plain}
    before, behind = observed(convolutions, batch), observed(convolutions, batch, stored)
    second = plain[1]
    x, z = (
        convolution_patches(module.second, seen["second"], second).reshape(-1, second.columns)
        for seen in (before, behind)
    )
    expected = best_weight(convolutions.matrix(second), x, z, 0.1)
    torch.testing.assert_close(rounding.targets["second.weight"], expected, rtol=1e-3, atol=1e-4)


def test_correction_brings_the_outputs_nearer() -> None:
    model, batch = stacked_language_model(), tokens()
    original = model.program.predict(batch.inputs)

    def error(corrector: PrefixCorrector | NoCorrector) -> float:
        rounding = Rounding()
        stored = {
            weight.name: model.graph.site(weight.name).stored(weight.dequantize())
            for weight in corrector.rounded(model, batch, rounding)
        }
        return float((model.program.predict(batch.inputs, weights=stored) - original).square().mean())

    assert error(PrefixCorrector()) < error(NoCorrector())


def test_as_many_samples_run_as_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "TOKENS_AT_ONCE", 7 * 16)
    model, lengths = stacked_language_model(), []
    embed = model.program.operator("embed")
    handle = embed.register_forward_pre_hook(lambda _module, arguments: lengths.append(len(arguments[0])))
    for options in ({"samples": 30}, {"values": 35 * 7 * 12}):  # the widest site reads 12 inputs
        list(PrefixCorrector(**options).rounded(model, tokens(), Rounding()))
    handle.remove()
    assert lengths == [2, 30, 30, 2, 32, 32]  # a check with one sample, twice; then the samples, twice


def test_held_out_samples_choose_the_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = stacked_language_model(), tokens()

    def targets(*ridges: float) -> dict[str, Tensor]:
        monkeypatch.setattr(prefix, "RIDGES", ridges)
        rounding = Rounding()
        list(PrefixCorrector().rounded(model, batch, rounding))
        return rounding.targets

    first = model.graph.sites[1].name  # what it reads does not depend on how others were corrected
    chosen, strong, far_too_strong = (targets(*ridges)[first] for ridges in ((1e6, 0.01), (0.01,), (1e6,)))
    assert torch.equal(chosen, strong)
    torch.testing.assert_close(far_too_strong, model.matrix(model.graph.site(first)), rtol=1e-4, atol=1e-5)


def test_what_helps_only_the_samples_it_was_made_from_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "RIDGES", (1e-5,))
    model, rounding = stacked_language_model(), Rounding()
    list(PrefixCorrector().rounded(model, tokens(4, 1), rounding))  # two tokens for eight inputs and more
    for site in model.graph.sites:
        assert torch.equal(rounding.targets[site.name], model.matrix(site))


def test_one_sample_corrects_nothing() -> None:
    model, rounding = stacked_language_model(), Rounding()
    list(PrefixCorrector().rounded(model, tokens(1), rounding))
    for site in model.graph.sites:
        assert torch.equal(rounding.targets[site.name], model.matrix(site))


KINDS = (
    *("llama", "tied_llama", "mixtral", "gpt_oss", "nemotron", "gpt2", "olmo", "bert", "bert_classifier"),
    *("falcon_h1", "clip_text"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_real_architectures_are_corrected(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With positions that all samples share, experts, states and masks; the last batch would be a smaller one."""
    monkeypatch.setattr(prefix, "TOKENS_AT_ONCE", 32)
    model, rounding = load(save_tiny_transformer(kind, tmp_path, torch.float32)), Rounding()
    ids = torch.randint(4, 40, (11, 8), generator=torch.Generator().manual_seed(4))
    weights = list(PrefixCorrector().rounded(model, SampleSet(inputs={"input_ids": ids}), rounding))
    assert [weight.name for weight in weights] == [site.name for site in model.graph.quantizable]
    targets = rounding.targets.items()
    assert any(not torch.equal(target, model.matrix(model.graph.site(name))) for name, target in targets)
