"""Integer operators: rounding put around the nodes that ONNX Runtime is to compute in integers.

The graph keeps its float nodes. What they read goes through a function that quantizes and dequantizes, and so do their
weights, row by row, from whatever they are stored as: that part is folded while the model is loaded. The runtime's
optimizer makes integer kernels of what stands between. Products whose grid follows every call are written as
DynamicQuantizeLinear and MatMulInteger, which it fuses as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, final

from onnx import ModelProto, NodeProto, helper

from guidedq.artifacts.activations import ActivationPlace
from guidedq.ir.activation_rounding import ActivationRounding
from guidedq.ir.graph import Site
from guidedq.ir.onnx_interpreter import ParsedGraph
from guidedq.ir.onnx_interpreter.node import Node
from guidedq.quant.integer import LEVELS, IntegerGrid

from .integer_places import JOINING, flow_of, integer_nodes
from .patch import name_length, names_of_length
from .skeleton import graph_names
from .unpacking import DOMAIN, library

FUNCTIONS_IR_VERSION = 8
"""The first version of the file format that has model-local functions."""
NAMES_PER_NODE = 4
"""No node needs more new names: its output's, its weight's, and one for each of two activations."""


def whole_rounding(places: Sequence[ActivationPlace], sites: Sequence[Site]) -> ActivationRounding:
    """Rounding at all of `places`, on grids that take the most bytes: to count them before any grid is known."""
    widest = IntegerGrid(scale=1.0, zero_point=LEVELS)
    return ActivationRounding(
        dynamic=tuple(name for place in places if place.dynamic for name in place.operators),
        inputs={name: widest for place in places if not place.dynamic for name in place.operators},
        values={place.name: widest for place in places if not place.operators},
        rows={site.name: 0 for site in sites if any(site.name in place.sites for place in places)},
    )


def put_integer_operators(
    proto: ModelProto, parsed: ParsedGraph, sites: Sequence[Site], rounding: ActivationRounding
) -> None:
    """Put the rounding into a model, which is changed.

    Args:
        proto: The whole model.
        parsed: Its nodes.
        sites: The sites to be stored by this backend.
        rounding: What is rounded, and which sites are computed in integers.
    """
    site_of = {use.operator: site.name for site in sites for use in site.uses}
    nodes = {name: node for name, node in integer_nodes(parsed, sites).items() if site_of[name] in rounding.rows}
    writer = _Writer(proto, rounding.largest_code)
    for name, node in nodes.items():
        if name in rounding.dynamic:
            writer.multiply_dynamically(node)
            continue
        writer.round_weight(node)
        if name in rounding.inputs:
            writer.round_input(node, 0, rounding.inputs[name])
    flow = flow_of(parsed)
    joining = [node for node in parsed.nodes if node.operator in JOINING and flow.written(node) in rounding.values]
    for node in (*nodes.values(), *joining):
        for position, value in enumerate(node.inputs):
            grid = rounding.values.get(flow.root(value))
            if grid is not None and value not in rounding.values:  # a passive operator stands between
                writer.round_input(node, position, grid)
    for value, grid in rounding.values.items():
        writer.round_value(value, grid)
    writer.finish()


@final
class _Writer:
    """Collects the changes to a graph, and makes them at once."""

    def __init__(self, proto: ModelProto, largest_code: int) -> None:
        self._proto, self._largest_code = proto, largest_code
        self._opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
        self._makers = {name: index for index, node in enumerate(proto.graph.node) for name in node.output if name}
        taken = frozenset(graph_names(proto.graph))
        self._names: Iterator[str] = names_of_length(name_length(NAMES_PER_NODE * len(proto.graph.node), taken), taken)
        self._nodes: defaultdict[int, list[NodeProto]] = defaultdict(list)
        self._after: defaultdict[int, list[NodeProto]] = defaultdict(list)
        self._replaced: set[int] = set()
        self._rounded: dict[tuple[str, IntegerGrid], tuple[int, str]] = {}
        self._functions: set[str] = set()

    def round_weight(self, node: Node) -> None:
        """Let a node read its weight in int8 rows."""
        index, target = self._find(node)
        if node.operator == "Gemm" and len(target.input) > 2 and target.input[2]:
            self._add_bias_after(index, target)
        function = "Rows8F" if _rows_first(node) else "Columns8F"
        target.input[1] = self._call(self._nodes[index], function, [target.input[1]])

    def _add_bias_after(self, index: int, target: NodeProto) -> None:
        """The runtime makes an integer kernel of a Gemm whose result is float only if it has no float bias."""
        product, bias = next(self._names), target.input[2]
        self._after[index].append(helper.make_node("Add", [product, bias], [target.output[0]]))
        del target.input[2]
        target.output[0] = product

    def round_input(self, node: Node, position: int, grid: IntegerGrid) -> None:
        """Let a node read one of its inputs rounded; readers of one value share what is rounded."""
        index, target = self._find(node)
        value = target.input[position]
        first, name = self._rounded.get((value, grid), (len(self._proto.graph.node), ""))
        if index < first:
            name = self._call(self._nodes[index], "Round", [value], s=grid.scale, z=grid.zero_point)
            self._rounded[value, grid] = index, name
        target.input[position] = name

    def round_value(self, value: str, grid: IntegerGrid) -> None:
        """Let all readers read a value rounded: it keeps its name, and what its node writes gets another."""
        index = self._makers[value]
        target = self._proto.graph.node[index]
        raw = next(self._names)
        target.output[list(target.output).index(value)] = raw
        self._call(self._after[index], "Round", [raw], value, s=grid.scale, z=grid.zero_point)

    def multiply_dynamically(self, node: Node) -> None:
        """Put a product with an activation that is rounded at every call in a node's place."""
        index, target = self._find(node)
        bias = target.input[2] if len(target.input) > 2 and target.input[2] else None
        function = "DynamicT" if _rows_first(node) else "Dynamic"
        output = None if bias else target.output[0]
        product = self._call(self._nodes[index], function, list(target.input[:2]), output)
        if bias:
            self._nodes[index].append(helper.make_node("Add", [product, bias], [target.output[0]]))
        self._replaced.add(index)

    def finish(self) -> None:
        """Make the changes."""
        graph = self._proto.graph
        kept = [NodeProto.FromString(node.SerializeToString()) for node in graph.node]
        del graph.node[:]
        for index, node in enumerate(kept):
            graph.node.extend(self._nodes[index])
            graph.node.extend([] if index in self._replaced else [node])
            graph.node.extend(self._after[index])
        # element type and accuracy level are those of functions for packed weights
        self._proto.functions.extend(
            library(
                self._functions,
                opset=self._opset,
                element_type=1,
                accuracy_level=0,
                largest_code=self._largest_code,
            )
        )
        self._proto.ir_version = max(self._proto.ir_version, FUNCTIONS_IR_VERSION)

    def _find(self, node: Node) -> tuple[int, NodeProto]:
        index = self._makers[node.outputs[0]]
        return index, self._proto.graph.node[index]

    def _call(
        self, place: list[NodeProto], function: str, inputs: list[str], output: str | None = None, **options: Any
    ) -> str:
        self._functions.add(function)
        name = output or next(self._names)
        place.append(helper.make_node(function, inputs, [name], domain=DOMAIN, **options))
        return name


def _rows_first(node: Node) -> bool:
    """Whether the rows of a weight lie along the first axis of what the node reads."""
    return node.operator == "Conv" or bool(node.integer("transB", 0))
