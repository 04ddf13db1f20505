"""The table from an operator's domain and type to the function that runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from guidedq.errors import UnsupportedOperatorError
from guidedq.ir.onnx_interpreter import (
    activations,
    arithmetic,
    attention,
    indexing,
    neural,
    normalization,
    quantized,
    recurrent,
    reductions,
    resize,
    sequences,
    shapes,
)
from guidedq.ir.onnx_interpreter.node import UNREADABLE, Body, Node
from guidedq.ir.onnx_interpreter.tensors import DTYPES, WIDER_THAN_THEIR_DTYPE

Operator: TypeAlias = Callable[..., Any]
"""Takes the node and its inputs (`None` for one left out); gives one value, or a tuple in the order of the outputs."""

OPERATORS: Mapping[tuple[str, str], Operator] = {
    ("", name): function
    for family in (
        activations,
        arithmetic,
        attention,
        indexing,
        neural,
        normalization,
        quantized,
        recurrent,
        reductions,
        resize,
        sequences,
        shapes,
    )
    for name, function in family.OPERATORS.items()
}

CONTROL_FLOW = frozenset({("", "If"), ("", "Loop"), ("", "Scan")})
"""Run by the interpreter itself, since they hold graphs of their own."""

REFUSALS: Mapping[str, Callable[[Node], str | None]] = {
    **dict.fromkeys(recurrent.GATES, recurrent.refusal),
    "Resize": resize.refusal,
    "Scan": lambda node: None if node.opset >= 9 else "before opset 9 its first axis is a batch",
}
"""Operators that run with some settings only: why not with these, `None` if they do."""

FIRST_OUTPUT_ONLY = frozenset({"MaxPool", "BatchNormalization"})
"""Operators whose further outputs (indices, training statistics) are not computed."""


def refusal(node: Node, reason: str) -> UnsupportedOperatorError:
    """The error that tells which node cannot be run, and why."""
    return UnsupportedOperatorError(f"{node.describe()} cannot be run in torch: {reason}.")


def refused(nodes: Iterable[Node]) -> Iterator[tuple[Node, str]]:
    """The nodes that cannot be run in torch, in branches too, and why."""
    for node in nodes:
        if (reason := _refusal(node)) is not None:
            yield node, reason
        for value in node.attributes.values():
            if isinstance(value, Body):
                yield from refused(value.nodes)


def _refusal(node: Node) -> str | None:
    key = (node.domain, node.operator)
    if key not in OPERATORS and key not in CONTROL_FLOW:
        return "guidedq does not have this operator"
    if unreadable := [name for name, value in node.attributes.items() if value is UNREADABLE]:
        return f"its attribute {unreadable[0]!r} is of a kind that cannot be read"
    if node.operator in FIRST_OUTPUT_ONLY and any(node.outputs[1:]):
        return "only its first output is computed"
    if node.operator == "BatchNormalization" and node.integer("training_mode", 0):
        return "it is in training mode"
    if node.operator == "Cast" and (target := node.integer("to", 1)) not in DTYPES.keys() - WIDER_THAN_THEIR_DTYPE:
        return f"element type {target} as the target of a cast"
    refusal = REFUSALS.get(node.operator)
    return None if refusal is None else refusal(node)
