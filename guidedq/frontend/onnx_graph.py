"""From the nodes of an ONNX graph to guidedq's graph of operators and sites."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from guidedq.frontend.onnx_types import UNKNOWN, ValueType
from guidedq.ir.graph import Graph, Site, Use, UseKind, operator_graph
from guidedq.ir.onnx_interpreter import ParsedGraph, WeightedNode
from guidedq.ir.onnx_interpreter.dependence import MEASURING
from guidedq.ir.onnx_interpreter.node import Node, with_branches
from guidedq.ir.onnx_interpreter.weighted import by_node, reads

PLUMBING = frozenset(
    {
        "Cast", "CastLike", "Concat", "ConcatFromSequence", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather",
        "GatherElements", "GatherND", "Pad", "Reshape", "SequenceAt", "SequenceConstruct", "Slice", "SpaceToDepth",
        "Split", "SplitToSequence", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that move values and compute none: the graph's edges pass through them."""
AFTER_HEAD = PLUMBING | {
    "Add",
    "Clip",
    "Div",
    "GlobalAveragePool",
    "LogSoftmax",
    "Mul",
    "ReduceMean",
    "Softmax",
    "Tanh",
}
"""What may stand between the head and the output, with constants for second operands."""


def build_graph(
    parsed: ParsedGraph, weighted: Sequence[WeightedNode], types: Mapping[str, ValueType], head: str | None
) -> Graph:
    """One node per operator that computes on floating point values which depend on an input, and every site.

    Args:
        parsed: The nodes that the output depends on.
        weighted: Those that read a site.
        types: Element types of values.
        head: Name of the site that gives the output.
    """
    readers = by_node(weighted)
    nodes: list[tuple[str, Mapping[str, Any]]] = []
    edges: list[tuple[str, str]] = []
    origins: dict[str, tuple[str, ...]] = dict.fromkeys(parsed.inputs, ())

    def visit(node: Node) -> None:
        entries = readers.get(node.name, ())
        read = [name for name in reads(node, entries) if name in origins]
        if node.operator in MEASURING or not (read or entries):
            return
        sources = tuple(dict.fromkeys(source for name in read for source in origins[name]))
        if any(inner.name in readers for inner in with_branches([node])) and not entries:
            sources = _through_branches(node, origins, visit)
        elif entries or _computes(node, types):
            for name, site in [(entry.operator, {"site": entry.site}) for entry in entries] or [(node.name, {})]:
                nodes.append((name, {"operator": node.operator, **site}))
                edges.extend((source, name) for source in sources)
                sources = (name,)
        origins.update((name, sources) for name in node.outputs if name)

    for node in parsed.nodes:
        visit(node)
    return Graph(
        operators=operator_graph(nodes, edges), sites=_sites(weighted), shared_inputs=_shared(weighted), head=head
    )


def find_head(parsed: ParsedGraph, weighted: Sequence[WeightedNode], output: str) -> WeightedNode | None:
    """The linear or convolution node that gives the output, but for scaling, offsets, softmax and rearrangement."""
    makers = {name: node for node in parsed.nodes for name in node.outputs}
    readers = {entry.node.name: entry for entry in weighted}
    value = output
    while (node := makers.get(value)) is not None:
        if (entry := readers.get(node.name)) is not None:
            return entry if entry.kind in (UseKind.LINEAR, UseKind.CONVOLUTION) else None
        variable = [name for name in node.inputs if name and name not in parsed.constants]
        data = variable[:1] if node.operator in PLUMBING else variable
        if node.operator not in AFTER_HEAD or len(data) != 1:
            return None
        value = data[0]
    return None


def _through_branches(
    node: Node, origins: dict[str, tuple[str, ...]], visit: Callable[[Node], None]
) -> tuple[str, ...]:
    """Visit the nodes of both branches of an If; the operators that its results come from."""
    for branch in node.branches:
        for inner in branch.nodes:
            visit(inner)
    ends = [name for branch in node.branches for name in branch.outputs]
    return tuple(dict.fromkeys(source for name in ends for source in origins.get(name, ())))


def _computes(node: Node, types: Mapping[str, ValueType]) -> bool:
    return node.operator not in PLUMBING and types.get(node.outputs[0], UNKNOWN).may_float


def _sites(weighted: Sequence[WeightedNode]) -> tuple[Site, ...]:
    users: defaultdict[str, list[WeightedNode]] = defaultdict(list)
    for entry in weighted:
        users[entry.site].append(entry)
    return tuple(
        Site(
            name=name,
            shape=entries[0].shape,
            storage=entries[0].storage,
            uses=tuple(Use(operator=entry.operator, kind=entry.kind) for entry in entries),
            input_groups=entries[0].groups,
        )
        for name, entries in users.items()
    )


def _shared(weighted: Sequence[WeightedNode]) -> tuple[tuple[str, ...], ...]:
    """Groups of linear sites that read one value; a site is in one group only."""
    groups: defaultdict[str, dict[str, None]] = defaultdict(dict)
    taken: set[str] = set()
    for entry in weighted:
        if entry.kind is UseKind.LINEAR and entry.site not in taken:
            groups[entry.activation][entry.site] = None
            taken.add(entry.site)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)
