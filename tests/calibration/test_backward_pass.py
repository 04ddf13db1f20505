"""Running backwards without holding on to the output."""

from __future__ import annotations

import weakref

import torch

from guidedq.calibration.backward_pass import run_backwards, scratch


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
