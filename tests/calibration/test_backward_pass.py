"""Running backwards without holding on to the output."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import torch
from tiny_models import tiny_language_model
from torch import Tensor, nn

from guidedq.artifacts.samples import SampleSet
from guidedq.calibration.backward_pass import backward_pass, run_backwards, score, scratch
from guidedq.calibration.events import Event
from guidedq.ir.model import Model
from guidedq.ir.program import TorchProgram


def head() -> tuple[torch.nn.Linear, torch.nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 4), torch.nn.Linear(4, 5, bias=False), torch.randn(2, 3)


def test_the_gradients_are_those_of_the_output_with_this_cotangent() -> None:
    first, last, inputs = head()
    cotangent = torch.randn(2, 5)
    last(first(inputs)).backward(cotangent)
    expected = [parameter.grad for parameter in (first.weight, last.weight)]
    first.zero_grad(), last.zero_grad()
    outputs, cotangents = [last(first(inputs))], [cotangent.clone()]
    run_backwards(outputs, cotangents)
    assert outputs == cotangents == []
    for parameter, gradient in zip((first.weight, last.weight), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0)


def test_the_output_is_gone_before_the_first_layers_are_reached() -> None:
    first, last, inputs = head()
    hidden = first(inputs)
    outputs = [last(hidden)]
    cotangents = [scratch(outputs[0]).fill_(1.0)]
    kept = [weakref.ref(outputs[0]), weakref.ref(cotangents[0])]
    alive: list[bool] = []
    first.weight.register_hook(lambda gradient: alive.extend(ref() is not None for ref in kept))
    del hidden
    run_backwards(outputs, cotangents)
    assert alive == [False, False]


def test_what_goes_back_from_logits_has_the_fisher_matrix_for_its_second_moment() -> None:
    logits, draws = torch.tensor([2.0, -1.0, 0.5, 0.0, -4.0]), 40_000
    p = logits.softmax(-1)
    drawn = logits.expand(draws, -1).clone()
    score(drawn, None, 0)
    torch.testing.assert_close(drawn.sum(-1), torch.zeros(draws), rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn.T @ drawn / draws, p.diag() - torch.outer(p, p), rtol=0, atol=0.005)
    torch.testing.assert_close(drawn.mean(0), torch.zeros(5), rtol=0, atol=0.01)


def test_where_the_model_is_sure_its_square_is_heard_in_every_sample() -> None:
    logits = torch.tensor([7.0, 0.0]).expand(200, -1).clone()
    p = logits[0].softmax(-1)
    score(logits, None, 0)
    squares = logits[:, 1].square() / (p[0] * p[1])
    assert squares.std() < 0.1  # of labels drawn from the model: 33


def test_what_is_masked_goes_nowhere() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    score(logits, torch.tensor([True, False, True]), 0)
    assert bool(logits[[0, 2]].abs().sum(-1).all())
    assert not bool(logits[1].any())


class AddingInPlace(nn.Module):
    """A model whose embeddings are added to in place, as BLIP's are."""

    def __init__(self, model: nn.Module, *, in_place: bool) -> None:
        super().__init__()
        self.embed, self.up, self.head = model.embed, model.up, nn.Linear(12, 24)
        self.in_place = in_place

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        if self.in_place:
            hidden += 1.0
        else:
            hidden = hidden + 1.0
        return self.head(torch.tanh(self.up(hidden)))


def test_a_model_may_add_to_its_embeddings_in_place() -> None:
    seen: list[dict[str, Tensor]] = []
    model = tiny_language_model()
    torch.manual_seed(0)
    ending = nn.Linear(12, 24).requires_grad_(False)
    for in_place in (False, True):
        module = AddingInPlace(_module(model), in_place=in_place).requires_grad_(False)
        module.head = ending
        gradients: dict[str, Tensor] = {}

        def record(event: Event, gradients: dict[str, Tensor] = gradients) -> None:
            gradients[event.site.name] = event.gradients

        sites = [model.graph.site(name) for name in ("embed.weight", "up.weight")]
        tokens = torch.arange(8).reshape(2, 4)
        changed = replace(model, program=TorchProgram(module=module), graph=replace(model.graph, head=None))
        backward_pass(changed, SampleSet(inputs={"input_ids": tokens}), 0, sites, record, seed=0)
        seen.append(gradients)
    assert set(seen[0]) == {"embed.weight", "up.weight"}
    for name, gradients in seen[0].items():
        torch.testing.assert_close(seen[1][name], gradients)


def _module(model: Model) -> Any:
    assert isinstance(model.program, TorchProgram)
    return model.program.module
