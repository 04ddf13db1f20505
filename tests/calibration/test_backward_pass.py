"""Running backwards without holding on to the output."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import torch
from tiny_models import tiny_language_model
from torch import Tensor, nn

from guidedq.artifacts.samples import SampleSet
from guidedq.calibration.backward_pass import backward_pass, run_backwards, scratch
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
