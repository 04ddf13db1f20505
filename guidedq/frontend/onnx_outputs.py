"""Which outputs of an ONNX graph the loss is about: the main one alone, or several together, and why not the others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from onnx import GraphProto, ValueInfoProto

from guidedq.frontend.onnx_inputs import NAMELESS
from guidedq.frontend.onnx_meaning import FEATURES, MainOutput, Meaning
from guidedq.frontend.onnx_types import FLOATING, UNKNOWN, ValueType, declared_type
from guidedq.ir.model import Objective
from guidedq.ir.onnx_interpreter import ParsedGraph
from guidedq.ir.onnx_interpreter.dependence import influences

STATES = re.compile(
    r"(?<![a-z])(present|past|cache)|(?<![a-z])(?<!last_hidden_)states?n?(?![a-z])"
    r"|^(new_|next_|out_)?(h|c)_?(n|t|out|next|new)$"
)
"""Names by which exporters call what a model hands to its own next call."""
NEXT = re.compile(r"[._]?(out|output|new|next|n|o)?[._]?\d*")
"""What they put before or after the name of the input that it will be."""
SIZED_BY_VALUES = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators whose results are as long as the values decide: samples would not fit together."""
NO_SAMPLES = "without an axis of samples in front"
"""Why an output does not count whose first axis is another."""
ENCODED = "last_hidden_state"
"""The output of an encoder, from which its others are pooled: it is the model's result by itself."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outcast:
    """An output that the loss is not about.

    Attributes:
        name: Its name in the file.
        reason: Why not, a few words.
    """

    name: str
    reason: str


def with_others(
    whole: ParsedGraph, graph: GraphProto, types: Mapping[str, ValueType], main: MainOutput, meaning: Meaning
) -> tuple[MainOutput, tuple[Outcast, ...]]:
    """The main output, together with all others that can count where it is not the model's result by itself.

    Args:
        whole: All nodes.
        graph: The file's graph, whose inputs and outputs name their axes.
        types: Element types and shapes of values.
        main: The main output.
        meaning: What the model is, judged by that output.

    Returns:
        The output, and those that do not count.
    """
    reasons = dict(_reasons(whole, graph, types))
    others = [name for name in whole.outputs if name != main.name]
    counted = [name for name in whole.outputs if name == main.name or not reasons[name]]
    outcasts = tuple(Outcast(name=name, reason=reasons[name]) for name in others if reasons[name])
    if len(counted) > 1 and not reasons[main.name] and not _stands_alone(whole, main, meaning, counted):
        return replace(main, softmax=False, together={name: whole.outputs[name] for name in counted}), outcasts
    reason = reasons[main.name] and f"as it is {reasons[main.name]}"
    left = {outcast.name: outcast.reason for outcast in outcasts}
    return main, tuple(Outcast(name=name, reason=left.get(name, reason)) for name in others)


def without(main: MainOutput, name: str) -> MainOutput:
    """The output together with all others but this one; alone where it is this one or the last."""
    together = {other: value for other, value in main.together.items() if other != name}
    return replace(main, together=together if main.name in together and len(together) > 1 else {})


def describe_outputs(main: MainOutput, outcasts: Sequence[Outcast]) -> str | None:
    """What the loss is about, for people; `None` of a model with one output."""
    if not main.together and not outcasts:
        return None
    reasons: dict[str, list[str]] = {}
    for outcast in outcasts:
        reasons.setdefault(outcast.reason, []).append(outcast.name)
    others = [", ".join(names) + (f" ({reason})" if reason else "") for reason, names in reasons.items()]
    rest = f"; not about {', '.join(others)}." if others else "."
    if not main.together:
        return f"the loss is about the output {main.name!r}{rest}"
    return f"the loss is about the outputs {', '.join(main.together)}, each relative to its own size{rest}"


def _reasons(whole: ParsedGraph, graph: GraphProto, types: Mapping[str, ValueType]) -> Iterator[tuple[str, str]]:
    """For every output why it cannot count beside others, empty if it can."""
    depends = influences(whole)
    declared = {entry.name: entry for entry in graph.output}
    given = [entry for entry in graph.input if entry.name in whole.inputs]
    states = {name for name in whole.outputs if _is_state(name, given)}
    seen: set[str] = set()
    for name, value in whole.outputs.items():
        if types.get(name, UNKNOWN).element not in FLOATING:
            yield name, "no floats"
        elif not depends[value]:
            yield name, "constant"
        elif value in seen:
            yield name, "the same again"
        elif name in states and len(states) < len(whole.outputs):
            yield name, "a state"
        elif _sized_by_values(whole, value, depends):
            yield name, "of a length that depends on values"
        elif not _may_count_samples(declared[name], given):
            yield name, NO_SAMPLES
        elif not _weights(whole, value):
            yield name, "behind no weight"
        else:
            yield name, ""
        seen.add(value)


def _is_state(name: str, inputs: Sequence[ValueInfoProto]) -> bool:
    """By its name, or as an input other than the first that has its name but for something before or after."""
    word = name.lower()
    names = [entry.name.lower() for entry in inputs[1:] if declared_type(entry).element in FLOATING]
    return STATES.search(word) is not None or any(_continues(word, other) for other in names)


def _continues(word: str, other: str) -> bool:
    rests = [word.removeprefix(other)] * word.startswith(other) + [word.removesuffix(other)] * word.endswith(other)
    return any(NEXT.fullmatch(rest) for rest in rests)


def _sized_by_values(whole: ParsedGraph, value: str, depends: Mapping[str, frozenset[str]]) -> bool:
    return any(
        node.operator in SIZED_BY_VALUES and any(depends.get(name) for name in node.reads)
        for node in whole.pruned(value).nodes
    )


def _may_count_samples(output: ValueInfoProto, inputs: Sequence[ValueInfoProto]) -> bool:
    """Whether the first axis is the samples' for all that is declared: of one name or size with the first input's."""
    if not output.type.tensor_type.HasField("shape"):
        return True
    sizes = output.type.tensor_type.shape.dim
    first = next(entry.type.tensor_type.shape.dim[0] for entry in inputs if entry.type.tensor_type.shape.dim)
    if not sizes:
        return False
    fixed, batch = (max(size.dim_value, 0) for size in (sizes[0], first))  # -1 is what some write for a free axis
    if fixed:
        return fixed == batch
    others = {size.dim_param for entry in inputs for size in entry.type.tensor_type.shape.dim}
    return sizes[0].dim_param not in others - {first.dim_param, *NAMELESS}


def _stands_alone(whole: ParsedGraph, main: MainOutput, meaning: Meaning, counted: Sequence[str]) -> bool:
    """Whether the main output is the result: of a language model or encoder, or of a classifier without rivals.

    A rival has weights of its own, and no name of features. Text has masks, which one output heeds and several do not:
    of a model that reads it others count only if they are rivals too.
    """
    if meaning.objective is Objective.LANGUAGE_MODEL or ENCODED in main.name.lower():
        return True
    own = _weights(whole, main.value)
    rivals = [name for name in counted if not _weights(whole, whole.outputs[name]) <= own]
    if meaning.objective is Objective.CLASSIFIER:
        return all(_is_features(name) for name in rivals)
    return meaning.vocabulary_size is not None and not rivals


def _is_features(name: str) -> bool:
    return any(word in name.lower() for word in FEATURES)


def _weights(whole: ParsedGraph, value: str) -> frozenset[str]:
    constants = whole.pruned(value).constants
    return frozenset(name for name, values in constants.items() if values.ndim > 1 and values.is_floating_point())
