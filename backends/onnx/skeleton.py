"""A model's graph without its weights: where every site was, and which nodes read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from guidedq.errors import BackendError
from guidedq.ir.graph import Site, Storage

from .patch import node_bytes

QUANTIZED_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16)
"""Element types that the runtime's quantized operators compute in; other weights are dequantized at load."""
_Uses = Mapping[str, list[tuple[int, int]]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A node that reads a site and that a quantized operator of the runtime can stand in for.

    Attributes:
        index: Of the node in the skeleton's graph.
        node: The node.
        rank: Rank of its other input (the activation, the indices), if known.
    """

    index: int
    node: NodeProto
    rank: int | None

    @property
    def is_gather(self) -> bool:
        """Whether it looks rows up; else it is a matrix product."""
        return self.node.op_type == "Gather"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A site in the skeleton.

    Attributes:
        site: The site.
        name: What the weight is called in this graph.
        element_type: ONNX data type that the nodes read.
        readers: The nodes to be replaced when the site is quantized; empty if some node reads the weight in a way
            that no quantized operator does: the weight is then dequantized while the model is loaded.
        removed: Indices of the nodes that go when the readers are replaced: themselves, and the transposes between.
        removed_bytes: Bytes of these nodes.
    """

    site: Site
    name: str
    element_type: int
    readers: tuple[Reader, ...]
    removed: frozenset[int]
    removed_bytes: int

    @property
    def linear(self) -> tuple[Reader, ...]:
        """The readers that are matrix products."""
        return tuple(reader for reader in self.readers if not reader.is_gather)

    @property
    def gathers(self) -> tuple[Reader, ...]:
        """The readers that look rows up."""
        return tuple(reader for reader in self.readers if reader.is_gather)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """A graph ready to be filled.

    Attributes:
        proto: The model without the weights of the slots.
        slots: By the site's name.
        opset: Version of the standard operators.
        element_type: ONNX data type in which the quantized operators compute.
    """

    proto: ModelProto
    slots: Mapping[str, Slot]
    opset: int
    element_type: int

    @property
    def names(self) -> frozenset[str]:
        """Every name that the graph uses, its inner graphs included, and those of the weights."""
        return frozenset(graph_names(self.proto.graph)) | {slot.name for slot in self.slots.values()}


def build_skeleton(
    proto: ModelProto, sites: Sequence[Site], names: Mapping[str, str], unread: Collection[str] = ()
) -> Skeleton:
    """Take the weights of `sites` out of `proto`, which is changed.

    Args:
        proto: The whole model, its tensors loaded.
        sites: The sites to be stored by this backend.
        names: What each of them is called in the graph.
        unread: Sites whose readers are left as they are: no quantized operator stands in for them.

    Raises:
        BackendError: the graph has no such weight, or one of another shape.
    """
    graph = proto.graph
    by_name = {names[site.name]: site for site in sites}
    ranks = _ranks(graph)
    types = _take_weights(graph, by_name)
    uses = _uses(graph)
    slots: dict[str, Slot] = {}
    for site in sites:
        name = names[site.name]
        slots[site.name] = _slot(graph, site, name, element_type=types[name], uses=uses, ranks=ranks)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    element_types = [slot.element_type for slot in slots.values() if slot.readers]
    element_type = max(QUANTIZED_TYPES, key=element_types.count)
    left = {name for name, slot in slots.items() if slot.element_type != element_type or name in unread}
    slots = {name: _unread(slot) if name in left else slot for name, slot in slots.items()}
    return Skeleton(proto=proto, slots=slots, opset=opset, element_type=element_type)


def _unread(slot: Slot) -> Slot:
    """The slot with its nodes left alone."""
    return replace(slot, readers=(), removed=frozenset(), removed_bytes=0)


def _take_weights(graph: GraphProto, by_name: Mapping[str, Site]) -> Mapping[str, int]:
    """Remove the weights from initializers, Constant nodes and overridable inputs, and give their element types."""
    types: dict[str, int] = {}
    for index in reversed(range(len(graph.initializer))):
        tensor = graph.initializer[index]
        if tensor.name in by_name:
            types[tensor.name] = _checked(tensor, by_name[tensor.name])
            del graph.initializer[index]
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type == "Constant" and node.output[0] in by_name:
            name = node.output[0]
            types[name] = _checked(next(item.t for item in node.attribute if item.name == "value"), by_name[name])
            del graph.node[index]
    if missing := sorted(set(by_name) - set(types)):
        raise BackendError(
            f"the graph has no weight called {missing[0]!r} (site {by_name[missing[0]].name!r}). "
            "This is a fault of the export: use the torch backend, or give the model as an ONNX file."
        )
    for index in reversed(range(len(graph.input))):
        if graph.input[index].name in by_name:
            del graph.input[index]
    for index in reversed(range(len(graph.value_info))):
        if graph.value_info[index].name in by_name:
            del graph.value_info[index]
    return types


def _checked(tensor: TensorProto, site: Site) -> int:
    if tuple(tensor.dims) != site.shape:
        raise BackendError(f"{site.name}: the graph has {list(tensor.dims)}, expected {list(site.shape)}.")
    return tensor.data_type


def _slot(
    graph: GraphProto, site: Site, name: str, *, element_type: int, uses: _Uses, ranks: Mapping[str, int]
) -> Slot:
    """Follow the weight through identities and transposes to the nodes that compute with it."""
    readers: list[Reader] = []
    removed: set[int] = set()
    waiting = [(name, site.storage is Storage.OUT_IN)]
    understood = element_type in QUANTIZED_TYPES and len(site.shape) == 2
    while waiting and understood:
        value, rows_are_out = waiting.pop()
        for index, position in uses.get(value, []):
            node = graph.node[index] if index >= 0 else NodeProto()
            removed.add(index)
            if node.op_type == "Identity" or _is_transpose(node):
                waiting.append((node.output[0], rows_are_out != _is_transpose(node)))
            elif _is_replaceable(node, position, rows_are_out) and ranks.get(node.input[1 - position]) != 1:
                readers.append(Reader(index=index, node=_copy(node), rank=ranks.get(node.input[1 - position])))
            else:
                understood = False
    if not understood or not readers:
        return Slot(site=site, name=name, element_type=element_type, readers=(), removed=frozenset(), removed_bytes=0)
    return Slot(
        site=site,
        name=name,
        element_type=element_type,
        readers=tuple(sorted(readers, key=lambda reader: reader.index)),
        removed=frozenset(removed),
        removed_bytes=sum(node_bytes(graph.node[index]) for index in removed),
    )


def _is_transpose(node: NodeProto) -> bool:
    options = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return node.op_type == "Transpose" and list(options.get("perm", (1, 0))) == [1, 0]


def _is_replaceable(node: NodeProto, position: int, rows_are_out: bool) -> bool:
    """Whether the node multiplies by the matrix, or looks its rows up, in the orientation that it has."""
    options = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "MatMul":
        return position == 1 and not rows_are_out
    if node.op_type == "Gemm":
        return position == 1 and bool(options.get("transB", 0)) == rows_are_out
    return node.op_type == "Gather" and position == 0 and rows_are_out and options.get("axis", 0) == 0


def _uses(graph: GraphProto) -> _Uses:
    """Who reads each value: index of the node and of its input; index -1 for the model's outputs and inner graphs."""
    uses: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, node in enumerate(graph.node):
        for position, name in enumerate(node.input):
            uses[name].append((index, position))
        for inner in _inner_graphs(node):
            for name in set(graph_names(inner)):
                uses[name].append((-1, 0))
    for output in graph.output:
        uses[output.name].append((-1, 0))
    return uses


def graph_names(graph: GraphProto) -> Iterator[str]:
    """Every name that a graph uses, its inner graphs included."""
    for entry in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        yield entry.name
    for sparse in graph.sparse_initializer:
        yield sparse.values.name
    for node in graph.node:
        yield from node.input
        yield from node.output
        for inner in _inner_graphs(node):
            yield from graph_names(inner)


def _inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _ranks(graph: GraphProto) -> Mapping[str, int]:
    """Ranks of values, as far as the file states them."""
    ranks: dict[str, int] = {}
    for entry in (*graph.input, *graph.value_info, *graph.output):
        kind: Any = entry.type.tensor_type
        if kind.HasField("shape"):
            ranks[entry.name] = len(kind.shape.dim)
    return ranks


def _copy(node: NodeProto) -> NodeProto:
    return NodeProto.FromString(node.SerializeToString())
