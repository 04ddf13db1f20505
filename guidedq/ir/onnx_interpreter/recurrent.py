"""Recurrent layers: LSTM, GRU and RNN, in both directions, with states and lengths of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from guidedq.ir.onnx_interpreter.node import Node
from guidedq.ir.onnx_interpreter.operators import LinearOperator, StatesOperator

Product = Callable[..., Tensor]
"""From states `[sample, hidden]` and, perhaps, a slice of gates to their products `[sample, gate x hidden]`."""
Step = Callable[[Tensor, tuple[Tensor, ...], Product], tuple[Tensor, ...]]
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
    weight: Tensor | LinearOperator,
    recurrence: Tensor | StatesOperator,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The states of every step `[time, direction, sample, hidden]`, and the last ones `[direction, sample, hidden]`.

    A weight that is a site comes as the submodule that holds it.
    """
    gates, samples_first = GATES[node.operator], bool(node.integer("layout", 0))
    if samples_first:
        hidden, cell = (None if state is None else state.transpose(0, 1) for state in (hidden, cell))
    else:
        values = values.transpose(0, 1)
    samples, steps = values.shape[:2]
    matrix = recurrence.held() if isinstance(recurrence, StatesOperator) else recurrence
    size = matrix.shape[-1]
    coming = functional.linear(values, weight.flatten(0, 1)) if isinstance(weight, Tensor) else weight(values)
    coming = coming.unflatten(-1, (len(matrix), -1))
    seen = told = None
    if isinstance(recurrence, StatesOperator):
        seen = values.new_zeros(samples, steps, len(matrix), states_read(node), size)
        told = recurrence(seen.flatten(2)).unflatten(-1, (len(matrix), gates, -1))
    directions: list[tuple[Tensor, tuple[Tensor, ...]]] = []
    for number in range(len(matrix)):
        sides = torch.zeros(2 * gates * size) if bias is None else bias[number]
        states = tuple(
            values.new_zeros(samples, size) if state is None else state[number]
            for state in ((hidden, cell) if node.operator == "LSTM" else (hidden,))
        )
        given = (coming[:, :, number] + sides[: gates * size]).unbind(1)
        products = _products(matrix[number].unflatten(0, (gates, -1)), number, seen, told)
        step = _step(node, number, sides[gates * size :], peepholes)
        backwards = number == 1 or node.text("direction", "forward") == "reverse"
        ends = torch.full((samples,), steps) if lengths is None else lengths
        directions.append(_run(step, given, states, ends, products, backwards=backwards))
    if seen is not None and lengths is not None:
        seen *= (torch.arange(steps) < lengths[:, None])[:, :, None, None, None]
    whole = torch.stack([outputs for outputs, _ in directions], dim=1)
    last = [torch.stack(states) for states in zip(*(states for _, states in directions), strict=True)]
    if samples_first:
        return (whole.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last))
    return (whole, *last)


def states_read(node: Node) -> int:
    """Of a direction: how many kinds of states its products read. A GRU may reset them for its last gate."""
    return GATES["GRU"] if node.operator == "GRU" and not node.integer("linear_before_reset", 0) else 1


def _products(matrix: Tensor, direction: int, seen: Tensor | None, told: Tensor | None) -> Callable[[int], Product]:
    """By step, the products with a direction's weight `[gate, hidden, in]`.

    What they read is written into `seen` [sample, step, direction, group, in], and `told` [sample, step, direction,
    gate, hidden], which is zero, is added, if there are any.
    """
    offsets = None if told is None else told[:, :, direction].unbind(1)

    def at(place: int) -> Product:
        def product(states: Tensor, gates: slice = slice(None)) -> Tensor:
            result = functional.linear(states, matrix[gates].flatten(0, 1))
            if seen is None or offsets is None:
                return result
            seen[:, place, direction, gates] = states.detach()[:, None]
            return result + offsets[place][:, gates].flatten(1)

        return product

    return at


def _run(
    step: Step,
    given: Sequence[Tensor],
    states: tuple[Tensor, ...],
    lengths: Tensor,
    products: Callable[[int], Product],
    *,
    backwards: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Step by step; a sample that has ended keeps its states and gives zeros."""
    outputs: list[Tensor] = [states[0]] * len(given)
    for place in range(len(given) - 1, -1, -1) if backwards else range(len(given)):
        running = (place < lengths).unsqueeze(-1)
        made = step(given[place], states, products(place))
        states = tuple(torch.where(running, new, old) for new, old in zip(made, states, strict=True))
        outputs[place] = torch.where(running, made[0], 0.0)
    return torch.stack(outputs) if outputs else states[0].new_zeros(0, *states[0].shape), states


def _step(node: Node, direction: int, bias: Tensor, peepholes: Tensor | None) -> Step:
    functions = _activations(node, direction)
    limit = node.attributes.get("clip")
    clipped: Activation = (lambda x: x) if limit is None else (lambda x: x.clamp(-limit, limit))
    if node.operator == "RNN":
        return lambda given, states, product: (functions[0](clipped(given + product(states[0]) + bias)),)
    if node.operator == "GRU":
        before = bool(node.integer("linear_before_reset", 0))
        return partial(_gated, functions, clipped, bias, before)
    views = None if peepholes is None else peepholes[direction].chunk(3)
    return partial(_remembering, functions, clipped, bias, views, bool(node.integer("input_forget", 0)))


def _gated(
    functions: Sequence[Activation],
    clipped: Activation,
    bias: Tensor,
    before: bool,
    given: Tensor,
    states: tuple[Tensor, ...],
    product: Product,
) -> tuple[Tensor, ...]:
    """Gated recurrent unit (Cho et al. 2014, arXiv 1406.1078): update, reset, hidden; `before` resets the product."""
    (hidden,) = states
    update_bias, reset_bias, hidden_bias = bias.chunk(3)
    to_update, to_reset, to_hidden = given.chunk(3, dim=-1)
    by_update, by_reset, *by_hidden = product(hidden, slice(None) if before else slice(2)).split(hidden.shape[-1], -1)
    update = functions[0](clipped(to_update + by_update + update_bias))
    reset = functions[0](clipped(to_reset + by_reset + reset_bias))
    if before:
        new = reset * (by_hidden[0] + hidden_bias)
    else:
        new = product(reset * hidden, slice(2, 3)) + hidden_bias
    return ((1 - update) * functions[1](clipped(to_hidden + new)) + update * hidden,)


def _remembering(
    functions: Sequence[Activation],
    clipped: Activation,
    bias: Tensor,
    views: Sequence[Tensor] | None,
    coupled: bool,
    given: Tensor,
    states: tuple[Tensor, ...],
    product: Product,
) -> tuple[Tensor, ...]:
    """Long short-term memory (Hochreiter and Schmidhuber 1997): input, output, forget and cell gates, peepholes."""
    hidden, cell = states
    enter, leave, keep, new = (given + product(hidden) + bias).chunk(4, dim=-1)
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
