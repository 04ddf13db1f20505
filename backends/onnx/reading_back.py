"""Reading back what ONNX Runtime makes of a file: which operator runs each site, and what is left of the unpacking.

The file's own graph, functions unrolled, tells which node is the first that meets a site's stored tensors and something
that the caller gives. That node's output has the same name in the graph that the runtime runs; where the runtime has
fused the node with what follows, the next output that is still there names the fused one.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import onnx.inliner
from onnx import ModelProto, NodeProto, TensorProto, helper

from guidedq.artifacts.runtime import RuntimeFacts, RuntimeNode, WeightState

DEQUANTIZE = "DequantizeLinear"
CODE_OPERATORS = ("MatMulNBits", "GatherBlockQuantized")
"""Operators of the runtime that say in their attributes which codes they read."""
INTEGER_KERNELS = {
    "Conv": ("QLinearConv", "ConvInteger"),
    "Gemm": ("QGemm",),
    "MatMul": ("QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
}
"""What its optimizer makes of operators between rounded values."""
INTEGER_BITS = {"INT8": 8, "UINT8": 8, "INT4": 4, "UINT4": 4, "INT2": 2, "UINT2": 2}


def runtime_facts(written: ModelProto, loaded: ModelProto, tensors: Mapping[str, str], name: str) -> RuntimeFacts:
    """What the runtime makes of the sites.

    Args:
        written: The model as it lies in the file; the values of its tensors are not needed.
        loaded: The model as the runtime runs it.
        tensors: The site that each stored tensor belongs to.
        name: The runtime and its version.
    """
    before, after = _Flow.of(_unrolled(written), tensors), _Flow.of(loaded, {})
    sites: dict[str, dict[str, RuntimeNode]] = {site: {} for site in tensors.values()}
    readers = before.readers()
    runs = {node.output[0]: _run_node(before, after, node, readers) for node, _ in readers}
    runs |= _integer_nodes(loaded, [node for node, _ in readers if runs[node.output[0]] is None])
    for node, found in readers:
        run = runs[node.output[0]]
        if run is not None:
            for site in found:
                sites[site][run.output[0]] = _described(run, after, unpacked=site in before.unpacked)
    left = Counter(node.op_type for node in after.constant) - Counter(node.op_type for node in before.unrelated)
    return RuntimeFacts(
        name=name,
        sites={site: tuple(found.values()) for site, found in sites.items()},
        unpacking_nodes=len(before.constant) - len(before.unrelated),
        unfolded_nodes=sum(left.values()),
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Flow:
    """A graph's nodes, parted into those that depend on stored values alone, and the others.

    Attributes:
        constant: Nodes that depend on stored values alone.
        unrelated: Those of them that read nothing of a site.
        live: The other nodes.
        sites: For each value that depends on stored values alone, the sites in it.
        unpacked: Sites that some node changes before they are read.
        makers: For each value the node that makes it.
        users: For each value the nodes that read it.
        types: Data types of stored tensors.
    """

    constant: list[NodeProto]
    unrelated: list[NodeProto]
    live: list[NodeProto]
    sites: Mapping[str, frozenset[str]]
    unpacked: frozenset[str]
    makers: Mapping[str, NodeProto]
    users: Mapping[str, list[NodeProto]]
    types: Mapping[str, int]

    @staticmethod
    def of(model: ModelProto, tensors: Mapping[str, str]) -> _Flow:
        """Part the nodes of a model; a node with a graph inside counts as live."""
        graph = model.graph
        stored = {tensor.name for tensor in graph.initializer}
        sites: dict[str, frozenset[str]] = {
            name: frozenset({tensors[name]} if name in tensors else ()) for name in ("", *stored)
        }
        constant, unrelated, live = list[NodeProto](), list[NodeProto](), list[NodeProto]()
        makers: dict[str, NodeProto] = {}
        users: defaultdict[str, list[NodeProto]] = defaultdict(list)
        for node in graph.node:
            makers.update(dict.fromkeys(node.output, node))
            for value in node.input:
                users[value].append(node)
            inner = any(item.HasField("g") or item.graphs for item in node.attribute)
            if inner or any(value not in sites for value in node.input):
                live.append(node)
                continue
            found = frozenset[str]().union(*(sites[value] for value in node.input))
            sites.update(dict.fromkeys(node.output, found))
            constant.append(node)
            if not found:
                unrelated.append(node)
        changed = frozenset[str]().union(*(sites[value] for node in constant for value in node.output))
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        return _Flow(
            constant=constant,
            unrelated=unrelated,
            live=live,
            sites=sites,
            unpacked=changed,
            makers=makers,
            users=users,
            types=types,
        )

    def readers(self) -> list[tuple[NodeProto, frozenset[str]]]:
        """The live nodes that read sites, with these."""
        read = [
            (node, frozenset[str]().union(*(self.sites.get(v, frozenset()) for v in node.input))) for node in self.live
        ]
        return [(node, found) for node, found in read if found]


def _unrolled(model: ModelProto) -> ModelProto:
    bare = ModelProto()
    bare.CopyFrom(model)
    return onnx.inliner.inline_local_functions(bare) if bare.functions else bare


def _run_node(
    before: _Flow, after: _Flow, node: NodeProto, readers: Sequence[tuple[NodeProto, frozenset[str]]]
) -> NodeProto | None:
    """What is run in a node's place: itself, or what it was fused into, as long as that is no other site's reader."""
    waiting, seen = deque(node.output), set(node.output)
    seen |= {name for other, _ in readers if other is not node for name in other.output}
    while waiting:
        value = waiting.popleft()
        if value in after.makers:
            run = after.makers[value]
            if value in node.output or run.op_type != before.makers[value].op_type:
                return run
            continue  # what follows is run on its own: the node's work went elsewhere
        following = [name for user in before.users.get(value, []) for name in user.output if name not in seen]
        waiting.extend(following)
        seen.update(following)
    return None


def _integer_nodes(loaded: ModelProto, missing: Sequence[NodeProto]) -> dict[str, NodeProto | None]:
    """The integer kernels that stand in for nodes, by these nodes' outputs.

    What rounds their results is fused into them, and its names are lost; kernels of a kind come in the nodes' order.
    """
    found: dict[str, NodeProto | None] = {}
    kernels = {
        kind: iter([n for n in loaded.graph.node if n.op_type in names]) for kind, names in INTEGER_KERNELS.items()
    }
    for node in missing:
        found[node.output[0]] = next(kernels[node.op_type], None) if node.op_type in kernels else None
    return found


def _described(node: NodeProto, after: _Flow, *, unpacked: bool) -> RuntimeNode:
    options: dict[str, Any] = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type in CODE_OPERATORS:
        return RuntimeNode(
            operator=node.op_type,
            weight="codes",
            bits=options.get("bits", 4),
            block_size=options.get("block_size"),
            accuracy_level=options.get("accuracy_level", 0) if node.op_type == "MatMulNBits" else None,
        )
    if (source := _dequantize_before(node, after)) is not None:
        bits, block = INTEGER_BITS.get(_type_name(after.types.get(source.input[0]))), _block(source)
        return RuntimeNode(operator=node.op_type, weight="each call", bits=bits, block_size=block)
    stored = (_type_name(after.types[value]) for value in node.input[1:] if value in after.types)
    bits = next((INTEGER_BITS[kind] for kind in stored if kind in INTEGER_BITS), None)
    state: WeightState = "codes" if bits else "folded" if unpacked else "stored"
    return RuntimeNode(operator=node.op_type, weight=state, bits=bits)


def _dequantize_before(node: NodeProto, after: _Flow) -> NodeProto | None:
    """The node that dequantizes stored codes for this one at every call, through nodes that only move them."""
    waiting = [value for value in node.input if value in after.sites]
    while waiting:
        maker = after.makers.get(waiting.pop())
        if maker is not None and maker.op_type == DEQUANTIZE:
            return maker
        waiting.extend(maker.input if maker is not None else ())
    return None


def _block(node: NodeProto) -> int | None:
    return next((item.i for item in node.attribute if item.name == "block_size" and item.i), None)


def _type_name(data_type: int | None) -> str:
    return TensorProto.DataType.Name(data_type) if data_type is not None else ""  # pyright: ignore[reportArgumentType]
