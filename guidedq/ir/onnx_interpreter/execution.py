"""Running one node on the values of a graph, branches and loops included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from guidedq.errors import ModelError
from guidedq.ir.onnx_interpreter.node import Body, Node, Value
from guidedq.ir.onnx_interpreter.table import OPERATORS

Run: TypeAlias = Callable[[Node, Mapping[str, Value]], tuple[Value, ...]]
"""Runs a node on the values of its graph."""


def run_node(node: Node, values: Mapping[str, Value], run: Run | None = None) -> tuple[Value, ...]:
    """The outputs of a node, in order; trailing ones that nobody asked for may be more or fewer.

    Args:
        node: What to run.
        values: What it may read.
        run: Runs the nodes of its inner graphs; by default as this one.

    Raises:
        ModelError: the operator fails on these values; the message names the node and the shapes.
    """
    try:
        if node.operator == "If":
            return _branch(node, values, run or run_node)
        if node.operator == "Loop":
            return _loop(node, values, run or run_node)
        if node.operator == "Scan":
            return _scan(node, values, run or run_node)
        inputs = [values[name] if name else None for name in node.inputs]
        result = OPERATORS[node.domain, node.operator](node, *inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise failure(node, values, error) from error
    return result if isinstance(result, tuple) else (result,)


def failure(node: Node, values: Mapping[str, Value], error: Exception) -> ModelError:
    """The error that tells which node failed, on which shapes."""
    shapes = [_shape(values.get(name)) for name in node.inputs]
    return ModelError(f"{node.describe()} failed on inputs of shapes {', '.join(shapes)}: {error}")


def run_body(body: Body, inputs: Sequence[Value], outer: Mapping[str, Value], run: Run) -> tuple[Value, ...]:
    """The outputs of a branch or of one turn of a loop; a weight that a submodule holds is no outer value."""
    values: dict[str, Value] = {name: outer[name] for name in body.captures if name in outer}
    values.update(body.constants)
    values.update(zip(body.inputs, inputs, strict=True))
    for node in body.nodes:
        results = run(node, values)
        values.update((name, result) for name, result in zip(node.outputs, results, strict=False) if name)
    return tuple(values[name] for name in body.outputs)


def _branch(node: Node, values: Mapping[str, Value], run: Run) -> tuple[Value, ...]:
    condition = values[node.inputs[0]]
    assert isinstance(condition, Tensor)
    body = node.attributes["then_branch" if bool(condition) else "else_branch"]
    return run_body(body, (), values, run)


def _loop(node: Node, values: Mapping[str, Value], run: Run) -> tuple[Value, ...]:
    body: Body = node.attributes["body"]
    limit, condition, *carried = (values[name] if name else None for name in node.inputs)
    turns = int(limit) if isinstance(limit, Tensor) else None
    going = bool(condition) if isinstance(condition, Tensor) else True
    scans: list[list[Tensor]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
    turn = 0
    while going and (turns is None or turn < turns):
        again, *rest = run_body(body, (torch.tensor(turn), torch.tensor(going), *carried), values, run)
        going = bool(again) if isinstance(again, Tensor) else True
        carried = rest[: len(carried)]
        for scan, part in zip(scans, rest[len(carried) :], strict=True):
            assert isinstance(part, Tensor)
            scan.append(part)
        turn += 1
    return (*carried, *(torch.stack(scan) if scan else torch.empty(0) for scan in scans))


def _scan(node: Node, values: Mapping[str, Value], run: Run) -> tuple[Value, ...]:
    """A body that runs once for each slice of its sequences, and joins what it gives."""
    body: Body = node.attributes["body"]
    count = node.integer("num_scan_inputs", 1)
    given = [values[name] for name in node.inputs]
    states, sequences = given[:-count], given[-count:]
    made = len(body.outputs) - len(states)
    axes = node.integers("scan_input_axes", [0] * count)
    turned = node.integers("scan_input_directions", [0] * count)
    slices: list[list[Tensor]] = []
    for sequence, axis, backwards in zip(sequences, axes, turned, strict=True):
        assert isinstance(sequence, Tensor)
        parts = list(sequence.unbind(axis))
        slices.append(parts[::-1] if backwards else parts)
    results: list[list[Tensor]] = [[] for _ in range(made)]
    for parts in zip(*slices, strict=True):
        states_and_parts = run_body(body, (*states, *parts), values, run)
        states = list(states_and_parts[: len(states)])
        for result, part in zip(results, states_and_parts[len(states) :], strict=True):
            assert isinstance(part, Tensor)
            result.append(part)
    axes = node.integers("scan_output_axes", [0] * made)
    turned = node.integers("scan_output_directions", [0] * made)
    joined = (
        torch.stack(result[::-1] if backwards else result, dim=axis) if result else torch.empty(0)
        for result, axis, backwards in zip(results, axes, turned, strict=True)
    )
    return (*states, *joined)


def _shape(value: Value) -> str:
    if isinstance(value, Tensor):
        return str(list(value.shape))
    return "none" if value is None else f"a sequence of {len(value)}"
