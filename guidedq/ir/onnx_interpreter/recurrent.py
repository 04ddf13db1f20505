"""Recurrent layers: LSTM, GRU and RNN, in both directions, with states and lengths of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from guidedq.ir.onnx_interpreter.node import Node

Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""From what the inputs give `[sample, gate x hidden]` and the states to the next states, the output first."""
Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: Mapping[str, Callable[[Tensor, float | None, float | None], Tensor]] = {
    "affine": lambda x, alpha, beta: (1.0 if alpha is None else alpha) * x + (0.0 if beta is None else beta),
    "elu": lambda x, alpha, _: functional.elu(x, 1.0 if alpha is None else alpha),
    "hardsigmoid": lambda x, alpha, beta: (
        (0.2 if alpha is None else alpha) * x + (0.5 if beta is None else beta)
    ).clamp(0, 1),
    "leakyrelu": lambda x, alpha, _: functional.leaky_relu(x, 0.01 if alpha is None else alpha),
    "relu": lambda x, _alpha, _beta: torch.relu(x),
    "sigmoid": lambda x, _alpha, _beta: torch.sigmoid(x),
    "softplus": lambda x, _alpha, _beta: functional.softplus(x),
    "softsign": lambda x, _alpha, _beta: functional.softsign(x),
    "tanh": lambda x, _alpha, _beta: torch.tanh(x),
}
"""By name in small letters; the specification takes any."""
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
USUAL = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
"""Activations of one direction where the node names none."""


def refusal(node: Node) -> str | None:
    """Why this node cannot be run, `None` if it can."""
    names = node.attributes.get("activations", USUAL[node.operator])
    if unknown := [name for name in names if name.lower() not in ACTIVATIONS]:
        return f"the activation {unknown[0]}"
    return None


def recurrent(
    node: Node,
    values: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The states of every step `[time, direction, sample, hidden]`, and the last ones `[direction, sample, hidden]`."""
    size, gates = recurrence.shape[-1], GATES[node.operator]
    samples_first = bool(node.integer("layout", 0))
    if samples_first:
        values = values.transpose(0, 1)
        hidden, cell = (None if state is None else state.transpose(0, 1) for state in (hidden, cell))
    steps, samples = values.shape[:2]
    directions: list[tuple[Tensor, tuple[Tensor, ...]]] = []
    for number in range(len(weight)):
        sides = torch.zeros(2 * gates * size) if bias is None else bias[number]
        states = tuple(
            values.new_zeros(samples, size) if state is None else state[number]
            for state in ((hidden, cell) if node.operator == "LSTM" else (hidden,))
        )
        given = values @ weight[number].t() + sides[: gates * size]
        step = _step(node, number, recurrence[number], sides[gates * size :], peepholes)
        backwards = number == 1 or node.text("direction", "forward") == "reverse"
        ends = torch.full((samples,), steps) if lengths is None else lengths
        directions.append(_run(step, given, states, ends, backwards=backwards))
    whole = torch.stack([outputs for outputs, _ in directions], dim=1)
    last = [torch.stack(states) for states in zip(*(states for _, states in directions), strict=True)]
    if samples_first:
        return (whole.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last))
    return (whole, *last)


def _run(
    step: Step, given: Tensor, states: tuple[Tensor, ...], lengths: Tensor, *, backwards: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Step by step; a sample that has ended keeps its states and gives zeros."""
    outputs: list[Tensor] = [states[0]] * len(given)
    for place in range(len(given) - 1, -1, -1) if backwards else range(len(given)):
        running = (place < lengths).unsqueeze(-1)
        made = step(given[place], states)
        states = tuple(torch.where(running, new, old) for new, old in zip(made, states, strict=True))
        outputs[place] = torch.where(running, made[0], 0.0)
    return torch.stack(outputs) if outputs else given.new_zeros(0, *states[0].shape), states


def _step(node: Node, direction: int, recurrence: Tensor, bias: Tensor, peepholes: Tensor | None) -> Step:
    functions = _activations(node, direction)
    limit = node.attributes.get("clip")
    clipped: Activation = (lambda x: x) if limit is None else (lambda x: x.clamp(-limit, limit))
    if node.operator == "RNN":
        return lambda given, states: (functions[0](clipped(given + states[0] @ recurrence.t() + bias)),)
    if node.operator == "GRU":
        before = bool(node.integer("linear_before_reset", 0))
        return partial(_gated, functions, clipped, recurrence, bias, before)
    views = None if peepholes is None else peepholes[direction].chunk(3)
    return partial(_remembering, functions, clipped, recurrence, bias, views, bool(node.integer("input_forget", 0)))


def _gated(
    functions: Sequence[Activation],
    clipped: Activation,
    recurrence: Tensor,
    bias: Tensor,
    before: bool,
    given: Tensor,
    states: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Gated recurrent unit (Cho et al. 2014, arXiv 1406.1078): update, reset, hidden; `before` resets the product."""
    (hidden,) = states
    by_update, by_reset, by_hidden = recurrence.chunk(3)
    update_bias, reset_bias, hidden_bias = bias.chunk(3)
    to_update, to_reset, to_hidden = given.chunk(3, dim=-1)
    update = functions[0](clipped(to_update + hidden @ by_update.t() + update_bias))
    reset = functions[0](clipped(to_reset + hidden @ by_reset.t() + reset_bias))
    if before:
        product = reset * (hidden @ by_hidden.t() + hidden_bias)
    else:
        product = (reset * hidden) @ by_hidden.t() + hidden_bias
    return ((1 - update) * functions[1](clipped(to_hidden + product)) + update * hidden,)


def _remembering(
    functions: Sequence[Activation],
    clipped: Activation,
    recurrence: Tensor,
    bias: Tensor,
    views: Sequence[Tensor] | None,
    coupled: bool,
    given: Tensor,
    states: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Long short-term memory (Hochreiter and Schmidhuber 1997): input, output, forget and cell gates, peepholes."""
    hidden, cell = states
    enter, leave, keep, new = (given + hidden @ recurrence.t() + bias).chunk(4, dim=-1)
    if views is not None:
        enter, keep = enter + views[0] * cell, keep + views[2] * cell
    entering = functions[0](clipped(enter))
    keeping = 1 - entering if coupled else functions[0](clipped(keep))
    cell = keeping * cell + entering * functions[1](clipped(new))
    if views is not None:
        leave = leave + views[1] * cell
    return functions[0](clipped(leave)) * functions[2](cell), cell


def _activations(node: Node, direction: int) -> tuple[Activation, ...]:
    """The functions of a direction; those that have parameters take the next ones listed."""
    usual = USUAL[node.operator]
    names = node.attributes.get("activations", usual * 2)
    parameters = {key: list(node.attributes.get(f"activation_{key}", ())) for key in ("alpha", "beta")}
    found: list[Activation] = []
    for name in names:
        alpha, beta = (parameters[key].pop(0) if parameters[key] else None for key in ("alpha", "beta"))
        found.append(partial(_call, ACTIVATIONS[name.lower()], alpha, beta))
    return tuple(found[direction * len(usual) : (direction + 1) * len(usual)])


def _call(
    function: Callable[[Tensor, float | None, float | None], Tensor],
    alpha: float | None,
    beta: float | None,
    values: Tensor,
) -> Tensor:
    return function(values, alpha, beta)


OPERATORS: Mapping[str, Callable[..., tuple[Tensor, ...]]] = dict.fromkeys(GATES, recurrent)
"""By operator type, in the domain of ONNX itself."""
