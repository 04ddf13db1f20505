"""What every rewrite of an ONNX graph needs: what a node is, who reads which name, other names, other entries."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper


def stored_value(node: NodeProto) -> TensorProto | None:
    """The value of a Constant node as a tensor, `None` if it is sparse or text."""
    for item in node.attribute:
        if item.name == "value":
            return item.t
        if item.name in ("value_int", "value_ints", "value_float", "value_floats"):
            dtype = np.int64 if "int" in item.name else np.float32
            return numpy_helper.from_array(np.array(helper.get_attribute_value(item), dtype=dtype))
    return None


def is_a(node: NodeProto, operator: str) -> bool:
    """Whether a node is of this operator of ONNX itself."""
    return node.op_type == operator and node.domain in ("", "ai.onnx")


def read_counts(graph: GraphProto) -> Counter[str]:
    """How often each name is read, in inner graphs too."""
    counts = Counter(name for node in graph.node for name in node.input)
    counts.update(entry.name for entry in graph.output)
    for node in graph.node:
        for inner in inner_graphs(node):
            counts += read_counts(inner)
    return counts


def rename(graph: GraphProto, renamed: Mapping[str, str]) -> None:
    """Let everything that reads these values read others."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        for inner in inner_graphs(node):
            own = {name for part in inner.node for name in part.output} | {entry.name for entry in inner.input}
            rename(inner, {old: new for old, new in renamed.items() if old not in own})


def all_names(graph: GraphProto) -> Iterator[str]:
    """Every name that is used, in inner graphs too."""
    for entry in (*graph.input, *graph.output, *graph.initializer):
        yield entry.name
    for node in graph.node:
        yield from (*node.input, *node.output)
        for inner in inner_graphs(node):
            yield from all_names(inner)


def fresh_name(name: str, taken: set[str]) -> str:
    """A name like this that nothing has; taken from now on."""
    candidate = next(name for name in (f"{name}_{count}" for count in itertools.count(1)) if name not in taken)
    taken.add(candidate)
    return candidate


def inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside a node."""
    for item in node.attribute:
        if item.HasField("g"):
            yield item.g
        yield from item.graphs


def keep(entries: Any, wanted: Any) -> None:
    """Drop the entries of a protobuf list that are not wanted."""
    for index in reversed(range(len(entries))):
        if not wanted(entries[index]):
            del entries[index]


def replace_all(entries: Any, others: list[Any]) -> None:
    """Give a protobuf list other entries, some of which may be its own."""
    copies = [
        other if isinstance(other, str) else type(other).FromString(other.SerializeToString()) for other in others
    ]
    del entries[:]
    entries.extend(copies)
