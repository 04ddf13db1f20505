"""From the protobuf of an ONNX model to nodes and constants: every name checked, identities resolved.

Constants are initializers and the values of Constant nodes, under the name that the file gives them. An Identity is
another name for what it reads, so a weight that an exporter ties through one is a single constant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import onnx
import torch
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto
from torch import Tensor

from guidedq.errors import ModelError, UnsupportedOperatorError
from guidedq.ir.onnx_interpreter.node import UNREADABLE, Body, Node
from guidedq.ir.onnx_interpreter.tensors import DTYPES, computed, torch_tensor

ONNX_DOMAINS = ("", "ai.onnx")
"""Both spell the operator set of ONNX itself."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedGraph:
    """The graph of an ONNX model.

    Attributes:
        nodes: In execution order, without constants and identities.
        constants: By name, as stored.
        inputs: Names of the inputs that have no default.
        outputs: The file's output names, each with the name of the value that it is.
        unreadable: Constants that torch has no type for (text, 8-bit floats, sparse tensors), each with the reason.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    outputs: Mapping[str, str]
    unreadable: Mapping[str, str]

    def check_readable(self) -> None:
        """See that all constants were read.

        Raises:
            UnsupportedOperatorError: torch has no type for one of them.
        """
        for name, reason in self.unreadable.items():
            raise UnsupportedOperatorError(f"the constant {name!r} cannot be read: {reason}")

    def pruned(self, *outputs: str) -> ParsedGraph:
        """Only the nodes and constants that the values `outputs` depend on."""
        needed = set(outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.outputs):
                kept.append(node)
                needed.update(node.reads)
        return ParsedGraph(
            nodes=tuple(reversed(kept)),
            constants={name: value for name, value in self.constants.items() if name in needed},
            inputs=self.inputs,
            outputs={name: value for name, value in self.outputs.items() if value in outputs},
            unreadable={name: reason for name, reason in self.unreadable.items() if name in needed},
        )


def parse_model(model: ModelProto) -> ParsedGraph:
    """Read a model whose functions are inlined and whose tensors are loaded.

    Raises:
        ModelError: a value is read before it is made, or stored with the wrong size.
    """
    opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
    graph = model.graph
    reader = _Reader(opsets)
    constants, aliases = reader.constants(graph)
    inputs = tuple(entry.name for entry in graph.input if entry.name not in {*constants, *reader.unreadable})
    nodes = reader.nodes(graph, {*constants, *reader.unreadable, *inputs}, aliases)
    made = {*constants, *reader.unreadable, *inputs, *(name for node in nodes for name in node.outputs)}
    outputs = {entry.name: aliases.get(entry.name, entry.name) for entry in graph.output}
    if missing := [name for name, value in outputs.items() if value not in made]:
        raise ModelError(f"no node makes the output {missing[0]!r}. The file is damaged; export the model again.")
    return ParsedGraph(
        nodes=nodes, constants=constants, inputs=inputs, outputs=outputs, unreadable=dict(reader.unreadable)
    )


def submodule_name(title: str) -> str:
    """A node's name made fit for a submodule: dots separate levels there, so they become underscores."""
    return re.sub(r"[\s.]", "_", title).strip("/") or "node"


@final
class _Reader:
    """Turns protobuf nodes into `Node`s with names that are unique over the whole model."""

    def __init__(self, opsets: Mapping[str, int]) -> None:
        self._opsets = opsets
        # a submodule cannot take the name of something that every module has
        self._taken = {*dir(torch.nn.Module()), "aliases", "constants", "passages", "values"}
        self.unreadable: dict[str, str] = {}

    def constants(self, graph: GraphProto) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The constants of a graph, and its identities: from each one's output to what it stands for."""
        constants: dict[str, Tensor] = {}
        aliases: dict[str, str] = {}
        for sparse in graph.sparse_initializer:
            self.unreadable[sparse.values.name] = "sparse tensors cannot be run in torch."
        for tensor in graph.initializer:
            self._read(constants, tensor.name, partial(torch_tensor, tensor))
        for node in graph.node:
            if _is_constant(node):
                self._read(constants, node.output[0], partial(_constant, node))
            elif _is_identity(node):
                aliases[node.output[0]] = aliases.get(node.input[0], node.input[0])
        return constants, aliases

    def _read(self, constants: dict[str, Tensor], name: str, read: Callable[[], Tensor]) -> None:
        try:
            constants[name] = read()
        except UnsupportedOperatorError as error:
            self.unreadable[name] = str(error)

    def nodes(self, graph: GraphProto, known: Iterable[str], aliases: Mapping[str, str]) -> tuple[Node, ...]:
        """The nodes of a graph; `known` are the values that it may read."""
        made = set(known)
        result: list[Node] = []
        for index, proto in enumerate(graph.node):
            if _is_constant(proto):
                continue
            inputs = tuple(aliases.get(name, name) for name in proto.input)
            if missing := [name for name in inputs if name and name not in made]:
                raise ModelError(
                    f"node {proto.name or index!r} ({proto.op_type}) reads {missing[0]!r}, which nothing makes before: "
                    "the graph has a circle, a loose end, or is not in order. Export the model again."
                )
            if _is_identity(proto):
                continue
            result.append(self._node(proto, index, inputs, made, aliases))
            made.update(proto.output)
        return tuple(result)

    def _node(
        self, proto: NodeProto, index: int, inputs: tuple[str, ...], made: set[str], aliases: Mapping[str, str]
    ) -> Node:
        domain = _domain(proto.domain)
        title = proto.name or f"{proto.op_type}_{index}"
        name = self._unique(submodule_name(title))
        return Node(
            name=name,
            title=title,
            domain=domain,
            operator=proto.op_type,
            opset=self._opsets.get(domain, 0),
            inputs=inputs,
            outputs=tuple(proto.output),
            attributes={entry.name: self._attribute(entry, made, aliases) for entry in proto.attribute},
        )

    def _unique(self, name: str) -> str:
        candidate, count = name, 0
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate

    def _attribute(self, proto: AttributeProto, made: set[str], aliases: Mapping[str, str]) -> Any:
        if proto.type == AttributeProto.GRAPH:
            return self._body(proto.g, made, aliases)
        if proto.type == AttributeProto.TENSOR:
            return torch_tensor(proto.t) if proto.t.data_type in DTYPES else UNREADABLE
        value = onnx.helper.get_attribute_value(proto)
        if isinstance(value, bytes):
            return value.decode(errors="replace")
        if isinstance(value, int | float):
            return value
        if isinstance(value, Sequence) and all(isinstance(item, int | float | bytes) for item in value):
            return tuple(item.decode(errors="replace") if isinstance(item, bytes) else item for item in value)
        return UNREADABLE

    def _body(self, graph: GraphProto, made: set[str], outer: Mapping[str, str]) -> Body:
        stored, own = self.constants(graph)
        constants = {name: computed(value) for name, value in stored.items()}
        aliases = {**outer, **{name: outer.get(source, source) for name, source in own.items()}}
        inputs = tuple(entry.name for entry in graph.input)
        nodes = self.nodes(graph, {*made, *constants, *self.unreadable, *inputs}, aliases)
        outputs = tuple(aliases.get(entry.name, entry.name) for entry in graph.output)
        local = {*constants, *inputs, *(name for node in nodes for name in node.outputs)}
        read = (name for names in (*(node.reads for node in nodes), outputs) for name in names)
        captures = tuple(dict.fromkeys(name for name in read if name not in local))
        return Body(inputs=inputs, outputs=outputs, nodes=nodes, constants=constants, captures=captures)


def _domain(name: str) -> str:
    return "" if name in ONNX_DOMAINS else name


def _is_constant(node: NodeProto) -> bool:
    return node.op_type == "Constant" and node.domain in ONNX_DOMAINS


def _is_identity(node: NodeProto) -> bool:
    return node.op_type == "Identity" and node.domain in ONNX_DOMAINS


def _constant(node: NodeProto) -> Tensor:
    for attribute in node.attribute:
        if attribute.name == "value":
            return torch_tensor(attribute.t)
        if attribute.name in ("value_float", "value_floats"):
            return torch.tensor(onnx.helper.get_attribute_value(attribute), dtype=torch.float32)
        if attribute.name in ("value_int", "value_ints"):
            return torch.tensor(onnx.helper.get_attribute_value(attribute), dtype=torch.int64)
    raise UnsupportedOperatorError(f"Constant (node {node.name!r}) holds a sparse tensor or text.")
