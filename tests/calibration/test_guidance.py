"""Guidance against slow, obvious twins: one sample and one token at a time."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import VOCABULARY, stacked_language_model, tiny_convolution, tiny_language_model
from tolerances import GRADIENT_INT8, SUM_FLOAT32
from torch import Tensor

from guidedq.artifacts.samples import SampleSet
from guidedq.calibration.article import ArticleGuide
from guidedq.calibration.backward_pass import SEED_STRIDE, backward_pass
from guidedq.calibration.collection import shards_of
from guidedq.calibration.events import as_event
from guidedq.calibration.fisher import FisherGuide
from guidedq.calibration.hessian import HessianGuide
from guidedq.calibration.kfac import KfacGuide
from guidedq.calibration.statistics import (
    STRIP_ROWS,
    accumulate,
    assembled,
    guided_sums,
    second_moment,
    token_frequencies,
)
from guidedq.calibration.store import StoredGuidance
from guidedq.calibration.unguided import NoGuide
from guidedq.errors import CalibrationError
from guidedq.ir.graph import Site, Use, UseKind
from guidedq.ir.model import Model
from guidedq.progress import SilentProgress

SEED = 5


def tokens(samples: int = 6, length: int = 7) -> SampleSet:
    generator = torch.Generator().manual_seed(1)
    return SampleSet(inputs={"input_ids": torch.randint(0, VOCABULARY, (samples, length), generator=generator)})


def images(samples: int = 4) -> SampleSet:
    return SampleSet(inputs={"image": torch.randn(samples, 2, 9, 9, generator=torch.Generator().manual_seed(2))})


def collect(guide, model: Model, samples: SampleSet, folder: Path, memory: int | None = None) -> StoredGuidance:
    return guide.collect(model, samples, folder, seed=SEED, memory_bytes=memory, progress=SilentProgress())


def gradients_of_one(model: Model, batch: SampleSet, index: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output gradient of every operator for one sample, by retained gradients: the oracle's only passes."""
    module, seen, handles = model.program.module, {}, []
    for site in model.graph.sites:
        for use in site.uses:

            def hook(_module, arguments, output, name=use.operator):
                output = output if output.requires_grad else output.requires_grad_()
                output.retain_grad()
                seen[name] = (arguments[0].detach(), output)
                return output

            handles.append(module.get_submodule(use.operator).register_forward_hook(hook))
    logits = module(**batch.part(index, index + 1).inputs)[0]
    generator = torch.Generator().manual_seed(SEED * SEED_STRIDE + index)
    p = torch.softmax(logits.detach(), -1).reshape(-1, logits.shape[-1])
    signs = 2.0 * torch.randint(0, 2, p.shape, generator=generator, dtype=torch.int8) - 1.0
    root = p.sqrt().diag_embed() - p[:, :, None] * p.sqrt()[:, None, :]  # of the Fisher matrix of every token
    logits.backward((root @ signs[..., None]).reshape(logits.shape))
    for handle in handles:
        handle.remove()
    return {name: (inputs[0], output.grad[0]) for name, (inputs, output) in seen.items()}


def test_fisher_hessian_of_a_linear_site_equals_a_loop_over_tokens(tmp_path: Path) -> None:
    model, batch = tiny_language_model(), tokens()
    found = collect(FisherGuide(), model, batch, tmp_path).site("up.weight").terms[0]
    hessian, moment, units = torch.zeros(8, 8), torch.zeros(12), 0
    for index in range(len(batch)):
        inputs, gradients = gradients_of_one(model, batch, index)["up"]
        for x, g in zip(inputs, gradients, strict=True):
            hessian += g.square().mean() * torch.outer(x, x)
            moment += g.square()
            units += 1
    torch.testing.assert_close(found.hessian[0], hessian / units, rtol=SUM_FLOAT32, atol=1e-7)
    torch.testing.assert_close(found.row_weight, moment / moment.mean(), rtol=SUM_FLOAT32, atol=1e-7)


def test_groups_give_every_block_of_rows_its_own_token_weights(tmp_path: Path) -> None:
    model, batch = tiny_language_model(), tokens()
    found = collect(FisherGuide(groups=3), model, batch, tmp_path).site("up.weight").terms[0]
    hessian, units = torch.zeros(3, 8, 8), 0
    for index in range(len(batch)):
        inputs, gradients = gradients_of_one(model, batch, index)["up"]
        for x, g in zip(inputs, gradients, strict=True):
            for group in range(3):
                hessian[group] += g[4 * group : 4 * group + 4].square().mean() * torch.outer(x, x)
            units += 1
    assert found.row_group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    torch.testing.assert_close(found.hessian, hessian / units, rtol=SUM_FLOAT32, atol=1e-7)


def test_a_tied_weight_has_a_term_for_its_lookup_and_one_for_its_head(tmp_path: Path) -> None:
    model, batch = tiny_language_model(), tokens()
    lookup, head = collect(FisherGuide(), model, batch, tmp_path).site("embed.weight").terms
    of_lookup, of_head, counts = torch.zeros(8, 8), torch.zeros(8, 8), torch.zeros(VOCABULARY)
    for index in range(len(batch)):
        seen = gradients_of_one(model, batch, index)
        for row, g in zip(*seen["embed"], strict=True):
            of_lookup += torch.outer(g, g)
            counts[row] += 1
        for x, g in zip(*seen["head"], strict=True):
            of_head += g.square().mean() * torch.outer(x, x)
    units = batch.inputs["input_ids"].numel()
    torch.testing.assert_close(lookup.hessian[0], of_lookup / units, rtol=SUM_FLOAT32, atol=1e-7)
    torch.testing.assert_close(head.hessian[0], of_head / units, rtol=SUM_FLOAT32, atol=1e-7)
    torch.testing.assert_close(lookup.row_weight, token_frequencies(counts.double()).float())


def test_convolution_statistics_equal_a_loop_over_positions(tmp_path: Path) -> None:
    model, batch = tiny_convolution(), images()
    terms = collect(FisherGuide(), model, batch, tmp_path).site("grouped.weight").terms
    hessian = torch.zeros(2, 18, 18)
    for index in range(len(batch)):
        inputs, gradients = gradients_of_one(model, batch, index)["grouped"]
        for row in range(gradients.shape[1]):
            for column in range(gradients.shape[2]):
                window = inputs[:, row : row + 3, column : column + 3]
                for group in range(2):
                    x = window[2 * group : 2 * group + 2].reshape(-1)
                    hessian[group] += gradients[2 * group : 2 * group + 2, row, column].square().mean() * torch.outer(
                        x, x
                    )
    assert terms[0].row_group.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(terms[0].hessian, hessian / len(batch), rtol=SUM_FLOAT32, atol=1e-7)


@pytest.mark.parametrize("make", [tiny_language_model, tiny_convolution])
def test_kept_sequence_gradients_are_the_weight_gradients_of_each_sample(make, tmp_path: Path) -> None:
    model = make()
    batch = tokens(4) if make is tiny_language_model else images(4)
    guidance = collect(FisherGuide(), model, batch, tmp_path)
    parameters = dict(model.program.module.named_parameters())
    for site in model.graph.sites:
        kept = guidance.gradients(site.name)
        assert kept is not None
        assert kept.sequences == 4
        for index in range(4):
            parameters[site.name].requires_grad_().grad = None
            gradients_of_one(model, batch, index)
            expected = parameters[site.name].grad.reshape(site.rows, site.columns)
            parameters[site.name].requires_grad_(False)
            found = kept.rows(0, site.rows)[index]
            assert float((found - expected).abs().max()) <= GRADIENT_INT8 * float(expected.abs().max())
            torch.testing.assert_close(kept.rows(1, 3)[index], found[1:3])


def test_the_distortion_of_a_small_error_is_the_divergence_of_the_outputs(tmp_path: Path) -> None:
    """The chain of definitions end to end: half E[(g . D x)^2] is the KL divergence per token, to second order."""
    model, batch = tiny_language_model(), tokens(400, 8)
    guidance = collect(FisherGuide(sequences=400), model, batch, tmp_path)
    generator = torch.Generator().manual_seed(3)
    site = model.graph.site("down.weight")
    error = 0.02 * torch.randn(site.rows, site.columns, generator=generator)
    changed = {site.name: model.program.parameter(site.name) + error}
    before = torch.log_softmax(model.program.predict(batch.inputs), -1)
    after = torch.log_softmax(model.program.predict(batch.inputs, weights=changed), -1)
    divergence = float((before.exp() * (before - after)).sum(-1).mean())
    kept = guidance.gradients(site.name)
    assert kept is not None
    projected = torch.einsum("soi,oi->s", kept.rows(0, site.rows), error)
    assert float(projected.square().mean() / 2 / 8) == pytest.approx(divergence, rel=0.25)
    assert float(guidance.site(site.name).distortion(error).sum()) == pytest.approx(divergence, rel=0.5)


def test_the_draw_for_a_sample_does_not_depend_on_its_batch_nor_on_the_order(tmp_path: Path) -> None:
    model, batch = tiny_language_model(), tokens(5)
    whole: list[dict[str, Tensor]] = []
    single: list[dict[str, Tensor]] = []
    sites = [model.graph.site("up.weight")]
    backward_pass(model, batch, 0, sites, lambda event: whole.append(guided_sums(event, 1)), seed=SEED)
    for index in reversed(range(5)):
        backward_pass(
            model,
            batch.part(index, index + 1),
            index,
            sites,
            lambda event: single.append(guided_sums(event, 1)),
            seed=SEED,
        )
    total = single[0]
    for part in single[1:]:
        accumulate(total, part)
    for name, values in whole[0].items():
        torch.testing.assert_close(total[name], values, rtol=SUM_FLOAT32, atol=1e-6)


def test_two_halves_merge_to_the_whole() -> None:
    model, batch = tiny_language_model(), tokens(6)
    sites = [model.graph.site("down.weight")]
    runs: list[dict[str, Tensor]] = []
    for first, part in ((0, batch), (0, batch.part(0, 3)), (3, batch.part(3, 6))):
        backward_pass(model, part, first, sites, lambda event: runs.append(guided_sums(event, 2)), seed=SEED)
    accumulate(runs[1], runs[2])
    for name, values in runs[1].items():
        torch.testing.assert_close(values, runs[0][name], rtol=SUM_FLOAT32, atol=1e-6)


def test_shards_under_a_memory_bound_give_the_same_guidance(tmp_path: Path) -> None:
    model, batch = tiny_language_model(), tokens()
    whole = collect(FisherGuide(), model, batch, tmp_path / "whole")
    split = collect(FisherGuide(), model, batch, tmp_path / "split", memory=4 * 8 * 8)
    assert split.facts["passes"] == len(shards_of(model.graph.sites, 4 * 8 * 8)) > 1
    for site in model.graph.sites:
        for one, other in zip(whole.site(site.name).terms, split.site(site.name).terms, strict=True):
            assert torch.equal(one.hessian, other.hessian)
            assert torch.equal(one.row_weight, other.row_weight)


class Interrupted(Exception):
    """Stands for a kill."""


class Interrupting:
    """Progress that raises after so many samples."""

    def __init__(self, after: int) -> None:
        self.left = after

    def start(self, stage: str, total: int) -> None: ...

    def notice(self, text: str) -> None: ...

    def advance(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise Interrupted


def test_an_interrupted_collection_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    model, batch = tiny_language_model(), tokens(48)
    guide = FisherGuide(checkpoint_seconds=0.0)
    whole = collect(guide, model, batch, tmp_path / "whole")
    with pytest.raises(Interrupted):
        guide.collect(model, batch, tmp_path / "killed", seed=SEED, memory_bytes=None, progress=Interrupting(after=20))
    assert list((tmp_path / "killed").glob("shard-*"))
    resumed = collect(guide, model, batch, tmp_path / "killed")
    for site in model.graph.sites:
        for one, other in zip(whole.site(site.name).terms, resumed.site(site.name).terms, strict=True):
            assert torch.equal(one.hessian, other.hessian)
        a, b = whole.gradients(site.name), resumed.gradients(site.name)
        assert a is not None
        assert b is not None
        assert torch.equal(a.rows(0, site.rows), b.rows(0, site.rows))


def test_recomputing_blocks_gives_the_same_guidance(tmp_path: Path) -> None:
    model, batch = stacked_language_model(), tokens()
    kept = collect(FisherGuide(recompute="never"), model, batch, tmp_path / "kept")
    again = collect(FisherGuide(recompute="always"), model, batch, tmp_path / "again")
    for site in model.graph.sites:
        for one, other in zip(kept.site(site.name).terms, again.site(site.name).terms, strict=True):
            torch.testing.assert_close(one.hessian, other.hessian, rtol=SUM_FLOAT32, atol=1e-8)
            torch.testing.assert_close(one.row_weight, other.row_weight, rtol=SUM_FLOAT32, atol=1e-8)
        a, b = kept.gradients(site.name), again.gradients(site.name)
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a.rows(0, site.rows), b.rows(0, site.rows), rtol=0.02, atol=1e-4)


def test_a_table_of_positions_that_the_batch_shares_is_one_sample() -> None:
    model = tiny_language_model()
    site = model.graph.site("up.weight")
    table = Site(name="p", shape=(5, 3), uses=(Use(operator="p", kind=UseKind.EMBEDDING),))
    module, positions, gradients = torch.nn.Identity(), torch.arange(4), torch.randn(4, 3)
    for shape in ((1, 4), (4,)):
        event = as_event(table, table.uses[0], module, positions.reshape(shape), gradients.reshape(*shape, 3), 6)
        assert event.rows_read.tolist() == [[0, 1, 2, 3]]
        assert torch.equal(event.gradients, gradients[None])
    flat = as_event(site, site.uses[0], module, torch.randn(6 * 7, 8), torch.randn(6 * 7, 12), 6)
    assert flat.inputs.shape == (6, 7, 1, 8)


def test_rows_of_the_head_are_weighed_by_their_chances_however_rare(tmp_path: Path) -> None:
    model, batch = tiny_language_model(), tokens(300)
    head = collect(FisherGuide(), model, batch, tmp_path).site("embed.weight").terms[1]
    chances = torch.softmax(model.program.predict(batch.inputs), -1)
    expected = (chances * (1 - chances)).sum((0, 1))
    torch.testing.assert_close(head.row_weight, expected / expected.mean(), rtol=0.15, atol=0)


def test_strips_assemble_to_the_whole_second_moment() -> None:
    vectors = torch.randn(2, 9, 2 * STRIP_ROWS + 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        assembled("h", second_moment("h", vectors)), vectors.transpose(1, 2) @ vectors, rtol=1e-4, atol=1e-4
    )


def test_masked_positions_add_nothing(tmp_path: Path) -> None:
    model = tiny_language_model()
    short = tokens(3, 6)
    padded = torch.cat([short.inputs["input_ids"], torch.zeros(3, 2, dtype=torch.int64)], dim=1)
    mask = torch.tensor([[True] * 6 + [False] * 2] * 3)
    hidden = collect(HessianGuide(), model, SampleSet(inputs={"input_ids": padded}, mask=mask), tmp_path / "b")
    term = hidden.site("down.weight").terms[0]
    inputs = torch.cat(
        [model.program.observe({"input_ids": padded}, {"down": None})["down"][index, :6] for index in range(3)]
    )
    torch.testing.assert_close(term.hessian[0], inputs.t() @ inputs / 18, rtol=SUM_FLOAT32, atol=1e-7)


def test_hessian_guide_is_the_mean_of_input_products_with_rows_alike(tmp_path: Path) -> None:
    model, batch = tiny_language_model(), tokens()
    guidance = collect(HessianGuide(), model, batch, tmp_path)
    inputs = model.program.observe(batch.inputs, {"up": None})["up"].reshape(-1, 8)
    term = guidance.site("up.weight").terms[0]
    torch.testing.assert_close(term.hessian[0], inputs.t() @ inputs / len(inputs), rtol=SUM_FLOAT32, atol=1e-7)
    assert torch.equal(term.row_weight, torch.ones(12))
    assert guidance.gradients("up.weight") is None


def test_article_metric_majorises_the_diagonal_of_kfac(tmp_path: Path) -> None:
    """Row sums of |G| are at least its diagonal, weight by weight."""
    model, batch = tiny_language_model(), tokens()
    article = collect(ArticleGuide(), model, batch, tmp_path / "a").site("up.weight").terms[0]
    kfac = collect(KfacGuide(), model, batch, tmp_path / "k").site("up.weight").terms[0]
    sums = article.row_weight[:, None] * article.hessian[0].diagonal()
    diagonal = kfac.row_weight[:, None] * kfac.hessian[0].diagonal()
    assert bool((sums >= diagonal * (1 - SUM_FLOAT32)).all())
    assert torch.equal(kfac.hessian[0], torch.diag(kfac.hessian[0].diagonal()))


def test_no_guide_runs_nothing_and_weighs_all_errors_alike(tmp_path: Path) -> None:
    model = tiny_language_model()
    guidance = collect(NoGuide(), model, tokens(), tmp_path)
    error = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(guidance.site("up.weight").distortion(error), 0.5 * error.square().sum(1))


def test_frequencies_leave_mass_for_rows_that_were_never_read() -> None:
    frequencies = token_frequencies(torch.tensor([8.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64))
    assert float(frequencies.sum()) == pytest.approx(1.0)
    assert float(frequencies[3]) == pytest.approx(0.1)
    assert float(frequencies[0]) == pytest.approx(0.64)


def test_an_output_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = tiny_language_model()
    model.program.module.up.weight.fill_(float("inf"))
    with pytest.raises(CalibrationError, match="not finite"):
        collect(FisherGuide(), model, tokens(), tmp_path)


def test_restored_guidance_is_what_was_collected(tmp_path: Path) -> None:
    model = tiny_language_model()
    collected = collect(FisherGuide(), model, tokens(), tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    restored = FisherGuide().restore(tmp_path / "there")
    assert restored == replace(collected, folder=tmp_path / "there")
    assert torch.equal(restored.site("up.weight").terms[0].hessian, restored.site("up.weight").terms[0].hessian)
