"""Where activations would have to be rounded for ONNX Runtime to compute a site in integers.

Its optimizer makes an integer kernel of a node between DequantizeLinear and QuantizeLinear: of a convolution if both
what it reads and what it writes are rounded, of a matrix product if what it reads is. Sums and averages between rounded
values become integer kernels too, if what they write is rounded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from guidedq.artifacts.activations import ActivationPlace
from guidedq.ir.graph import Site, Storage, UseKind
from guidedq.ir.onnx_interpreter import ParsedGraph
from guidedq.ir.onnx_interpreter.node import Node

JOINING = frozenset({"Add", "AveragePool", "GlobalAveragePool"})
"""Operators with integer kernels that are worth it between integer convolutions."""
PASSIVE = frozenset({"Flatten", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that choose among the values they read: what they write lies on the same grid, if they pad with zeros."""
CONVOLVED_RANKS = (3, 4)
"""Axes of the weights of convolutions in one and two dimensions, which the integer kernel takes."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Who makes and who reads each value of a graph; its outputs, constants, and constants that are zero."""

    makers: Mapping[str, Node]
    readers: Mapping[str, Sequence[Node]]
    outputs: frozenset[str]
    constants: frozenset[str]
    zeros: frozenset[str]

    def root(self, value: str) -> str:
        """The value that passive operators made this one of."""
        while (node := self.makers.get(value)) is not None and self._is_passive(node):
            value = node.inputs[0]
        return value

    def _is_passive(self, node: Node) -> bool:
        padding = node.inputs[2] if node.operator == "Pad" and len(node.inputs) > 2 else ""
        return node.operator in PASSIVE and not node.domain and (not padding or padding in self.zeros)

    def written(self, node: Node) -> str:
        """What a kernel for the node would write: the output of the Relu that alone reads the node's, or its own."""
        value = node.outputs[0]
        readers = self.readers.get(value, ())
        if len(readers) == 1 and readers[0].operator == "Relu" and value not in self.outputs:
            return readers[0].outputs[0]
        return value

    def read(self, node: Node) -> list[str]:
        """The roots of what a node reads, constants apart."""
        return [self.root(name) for name in node.inputs if name and name not in self.constants]


def flow_of(parsed: ParsedGraph) -> Flow:
    """The flow of a graph."""
    readers: defaultdict[str, list[Node]] = defaultdict(list)
    for node in parsed.nodes:
        for name in node.reads:
            readers[name].append(node)
    return Flow(
        makers={name: node for node in parsed.nodes for name in node.outputs},
        readers=readers,
        outputs=frozenset(parsed.outputs.values()),
        constants=frozenset(parsed.constants),
        zeros=frozenset(name for name, value in parsed.constants.items() if not bool(value.any())),
    )


def dynamic_places(parsed: ParsedGraph, sites: Sequence[Site]) -> tuple[ActivationPlace, ...]:
    """One place for every tensor that matrix products with sites read."""
    found = integer_nodes(parsed, sites)
    linear = {name: node for name, node in found.items() if node.operator in ("MatMul", "Gemm")}
    return _read_places(linear, sites, dynamic=True)


def static_places(parsed: ParsedGraph, sites: Sequence[Site]) -> tuple[ActivationPlace, ...]:
    """What convolutions read and write, what is summed and averaged in between, and what matrix products read."""
    flow, nodes = flow_of(parsed), integer_nodes(parsed, sites)
    site_of = {use.operator: site.name for site in sites for use in site.uses}
    written = {
        name: flow.written(node)
        for name, node in nodes.items()
        if node.operator == "Conv" and flow.written(node) not in flow.outputs
    }
    nodes = {name: node for name, node in nodes.items() if node.operator != "Conv" or name in written}
    values: defaultdict[str, list[str]] = defaultdict(list)
    for name, value in written.items():
        values[value].append(site_of[name])
    wanted = _wanted(parsed, flow, nodes, site_of)
    for node in parsed.nodes:
        value = flow.written(node) if node.operator in JOINING and not node.domain else ""
        if value in wanted and value not in flow.outputs and all(name in values for name in flow.read(node)):
            values[value] = []
    for name, node in nodes.items():
        if (root := flow.root(node.inputs[0])) in values:
            values[root].append(site_of[name])
    order = [site.name for site in sites]
    whole = [
        ActivationPlace(name=value, sites=tuple(sorted(set(mine) or wanted[value], key=order.index)))
        for value, mine in values.items()
    ]
    rest = {name: node for name, node in nodes.items() if flow.root(node.inputs[0]) not in values}
    return (*whole, *_read_places(rest, sites, dynamic=False))


def integer_nodes(parsed: ParsedGraph, sites: Sequence[Site]) -> dict[str, Node]:
    """The nodes that read a float32 weight in a way that there is an integer kernel for, by name, in graph order.

    Sites that something else reads too, an embedding's look-up for one, are left out.
    """
    kinds = {
        use.operator: (site, use.kind)
        for site in sites
        for use in site.uses
        if all(other.kind is not UseKind.EMBEDDING for other in site.uses)
    }
    found: dict[str, Node] = {}
    flow = flow_of(parsed)
    for node in parsed.nodes:
        site, kind = kinds.get(node.name, (None, None))
        if site is None or not _is_float(parsed.constants.get(site.name)) or flow.root(node.inputs[1]) != site.name:
            continue
        plain = node.operator != "Gemm" or (node.number("alpha", 1.0) == 1.0 and node.number("beta", 1.0) == 1.0)
        convolved = len(site.shape) in CONVOLVED_RANKS and site.storage is not Storage.IN_OUT_KERNEL
        if plain and (kind is UseKind.LINEAR or convolved):
            found[node.name] = node
    whole = {site.name for site in sites if all(use.operator in found for use in site.uses)}
    return {name: node for name, node in found.items() if kinds[name][0].name in whole}


def _wanted(
    parsed: ParsedGraph, flow: Flow, nodes: Mapping[str, Node], site_of: Mapping[str, str]
) -> Mapping[str, set[str]]:
    """The values that some integer kernel would read, through joining operators too, each with the sites that do."""
    wanted: defaultdict[str, set[str]] = defaultdict(set)
    for name, node in nodes.items():
        wanted[flow.root(node.inputs[0])].add(site_of[name])
    for node in reversed(parsed.nodes):
        if node.operator in JOINING and not node.domain and (value := flow.written(node)) in wanted:
            for name in flow.read(node):
                wanted[name] |= wanted[value]
    return dict(wanted)


def _read_places(nodes: Mapping[str, Node], sites: Sequence[Site], *, dynamic: bool) -> tuple[ActivationPlace, ...]:
    """One place for every value that some of these nodes read, rounded for them alone."""
    operators: defaultdict[str, list[str]] = defaultdict(list)
    for name, node in nodes.items():
        operators[node.inputs[0]].append(name)
    return tuple(
        ActivationPlace(
            name=value,
            operators=tuple(mine),
            sites=tuple(site.name for site in sites if any(use.operator in mine for use in site.uses)),
            dynamic=dynamic,
        )
        for value, mine in operators.items()
    )


def _is_float(weight: Tensor | None) -> bool:
    return weight is not None and weight.dtype is torch.float32
