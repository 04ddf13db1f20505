"""What the inputs and outputs of an ONNX graph mean: which output counts, what its loss is, which input is tokens.

An ONNX file does not say. The rules are here, each in one function: by names that exporters use, and by structure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

from onnx import TensorProto

from guidedq.errors import ModelError
from guidedq.frontend.onnx_types import UNKNOWN, ValueType
from guidedq.ir.graph import UseKind
from guidedq.ir.model import Objective
from guidedq.ir.onnx_interpreter import ParsedGraph, WeightedNode
from guidedq.ir.onnx_interpreter.dependence import influences
from guidedq.ir.onnx_interpreter.node import Node

PREFERRED_OUTPUTS = ("logits", "prob", "score", "output", "last_hidden_state")
"""Where a model has several floating point outputs, the first whose name holds the first of these words is taken."""
TOKEN_INPUTS = ("input_ids", "token_ids", "tokens", "ids")
"""Words by which the input of token ids is known, the surest first; `token_type_ids` and `position_ids` are not it."""
OTHER_IDS = ("type", "position", "segment", "mask")
"""Words in the names of integer inputs that are no token ids."""
FEATURES = ("embed", "feature", "hidden", "pool")
"""Words in the names of outputs that are no logits, whatever makes them."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MainOutput:
    """The output that the loss is about, or the first of several.

    Attributes:
        name: Its name in the file.
        value: The graph's value that it is.
        softmax: Whether it holds probabilities: a softmax over the last axis. The program then gives their logarithm.
        together: Names and values of all that the loss is about, in the file's order; none if it is about one output.
    """

    name: str
    value: str
    softmax: bool
    together: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs that count."""
        return tuple(self.together) or (self.name,)

    @property
    def values(self) -> tuple[str, ...]:
        """The graph's values that they are."""
        return tuple(self.together.values()) or (self.value,)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """How the model is to be used: see `Model` for the fields."""

    objective: Objective
    vocabulary_size: int | None
    context_length: int | None


def main_output(parsed: ParsedGraph, types: Mapping[str, ValueType]) -> MainOutput:
    """The first floating point output that depends on an input, or the first of these with a preferred name.

    Raises:
        ModelError: no output is a floating point tensor, or none depends on an input.
    """
    floating = [name for name in parsed.outputs if types.get(name, UNKNOWN).may_float]
    if not floating:
        raise ModelError(f"no output of the model is a floating point tensor; it has {sorted(parsed.outputs)}.")
    depends = influences(parsed)
    floating = [name for name in floating if depends[parsed.outputs[name]]]
    if not floating:
        raise ModelError(
            f"no output of the model depends on an input: {', '.join(sorted(parsed.outputs))} are constant. There "
            "is no loss to guide by; export the model again with its inputs connected."
        )
    named = (name for word in PREFERRED_OUTPUTS for name in floating if word in name.lower())
    name = next(named, floating[0])
    value = parsed.outputs[name]
    maker = next((node for node in parsed.nodes if value in node.outputs), None)
    rank = len(types.get(name, UNKNOWN).shape or ())
    return MainOutput(name=name, value=value, softmax=maker is not None and _is_last_softmax(maker, rank))


def with_logarithm(parsed: ParsedGraph, output: MainOutput) -> ParsedGraph:
    """The graph with the softmax that makes the output replaced by its logarithm, which is a kind of logits."""
    if not output.softmax:
        return parsed
    nodes = [replace(node, operator="LogSoftmax") if output.value in node.outputs else node for node in parsed.nodes]
    return replace(parsed, nodes=tuple(nodes))


def find_meaning(
    parsed: ParsedGraph,
    weighted: Sequence[WeightedNode],
    types: Mapping[str, ValueType],
    output: MainOutput,
    head: WeightedNode | None,
) -> Meaning:
    """Language model, classifier, values, or values of several outputs.

    A language model reads token ids through an embedding and gives three axes, the last as long as the embedding has
    rows. A classifier gives `[sample, class]` with two classes or more, and either its name says so or it ends in a
    linear operator or a softmax; an output named as an embedding is none. Anything else is values.
    """
    depends = influences(parsed)
    tokens = _token_input(parsed.inputs, types)
    tables = [entry for entry in weighted if entry.kind is UseKind.EMBEDDING]
    words = max((entry.shape for entry in tables if tokens in depends.get(entry.activation, frozenset())), default=None)
    places = [
        entry.shape[0] for entry in tables if _is_positional(depends.get(entry.activation, frozenset()), entry, words)
    ]
    vocabulary, limit = (words[0] if words else None), max(places, default=None)
    shape = types.get(output.name, UNKNOWN).shape
    rows = None if head is None else (head.shape[-1] if head.storage.value == "in_out" else head.shape[0])
    last = (shape[-1] if shape else None) or rows
    objective = Objective.VALUES
    if output.together:
        objective = Objective.JOINT_VALUES
    elif vocabulary is not None and shape is not None and len(shape) == 3 and last == vocabulary:
        objective = Objective.LANGUAGE_MODEL
    elif shape is not None and len(shape) == 2 and last is not None and last >= 2 and _says_classes(output, head):
        objective = Objective.CLASSIFIER
    return Meaning(objective=objective, vocabulary_size=vocabulary, context_length=limit)


def _is_last_softmax(node: Node, rank: int) -> bool:
    if node.operator != "Softmax" or node.domain:
        return False
    axis = node.integer("axis", -1 if node.opset >= 13 else 1)
    return axis == -1 or (rank > 0 and axis == rank - 1)


def _says_classes(output: MainOutput, head: WeightedNode | None) -> bool:
    name = output.name.lower()
    if any(word in name for word in FEATURES):
        return False
    return output.softmax or head is not None or any(word in name for word in ("logit", "prob", "class", "score"))


def _token_input(inputs: Sequence[str], types: Mapping[str, ValueType]) -> str | None:
    """The input of token ids, `None` if there is none."""
    integers = [
        name
        for name in inputs
        if types.get(name, UNKNOWN).element in (TensorProto.INT64, TensorProto.INT32)
        and not any(word in name.lower() for word in OTHER_IDS)
    ]
    named = (name for word in TOKEN_INPUTS for name in integers if word in name.lower())
    return next(named, integers[0] if len(integers) == 1 else None)


def _is_positional(inputs: frozenset[str], table: WeightedNode, words: tuple[int, ...] | None) -> bool:
    """Whether a table holds positions: as wide as the words', and its index depends at most on masks and positions."""
    free = all("mask" in name.lower() or "position" in name.lower() for name in inputs)
    return free and words is not None and table.shape[1:] == words[1:]
