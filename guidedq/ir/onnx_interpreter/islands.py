"""Operators that torch does not have, run by ONNX Runtime in the midst of a graph that torch runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import onnx
import torch
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor

from guidedq.errors import ModelError
from guidedq.ir.onnx_interpreter.node import UNREADABLE, Body, Node, Value
from guidedq.ir.onnx_interpreter.parsing import ParsedGraph
from guidedq.ir.onnx_interpreter.table import refusal, refused
from guidedq.ir.onnx_interpreter.tensors import DTYPES, computed
from guidedq.ir.onnx_session import as_array, open_session, run_session

ELEMENTS = {dtype: element for element, dtype in reversed(list(DTYPES.items())) if element < TensorProto.UINT32}
"""The element type that stands for each dtype: the first of those that it holds."""
HELD = frozenset({0, TensorProto.BFLOAT16, *ELEMENTS.values()})
"""Element types of values that can be handed to the runtime as they came, or in float32; 0 for an unknown one."""
PLAIN_OPSET, IR_VERSION = 21, 10
"""Of ONNX's own operators, which those of other domains may be made of, and of the file format that goes with it."""
FINDING_TYPES = ("Cast",)
"""Refused for the type of what they make, which torch could not hold either."""


@final
class Island:
    """One node as a model of its own. No gradient passes through it.

    `refusal` says why torch does not run it.
    """

    def __init__(self, node: Node, refusal: str, constants: Mapping[str, Tensor]) -> None:
        """Of the node's inputs those among `constants` are stored in its model: some operators want them so."""
        self.refusal = refusal
        self._node = node
        self._constants = {name: constants[name] for name in node.inputs if name in constants}
        self._sessions: dict[tuple[torch.dtype, ...], Any] = {}

    def run(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        """The outputs of the node; 16-bit floats are computed in float32, as everywhere.

        Raises:
            ModelError: ONNX Runtime does not run the node on these values.
        """
        names = [name for name in dict.fromkeys(self._node.inputs) if name and name not in self._constants]
        given = {name: value for name in names if isinstance(value := values[name], Tensor)}
        if len(given) < len(names):
            raise ModelError(f"{self._node.describe()} reads a sequence, which only a whole graph in ONNX Runtime can.")
        types = tuple(value.dtype for value in given.values())
        wanted = [name for name in self._node.outputs if name]
        feeds = {name: as_array(value, "") for name, value in given.items()}
        try:
            if types not in self._sessions:
                self._sessions[types] = open_session(self._model(given))
            made = run_session(self._sessions[types], wanted, feeds)
        except ModelError as error:
            raise ModelError(f"{self._node.describe()} failed, alone in ONNX Runtime: {error}") from error
        return tuple(computed(made[name]) if name else None for name in self._node.outputs)

    def _model(self, given: Mapping[str, Tensor]) -> ModelProto:
        node = self._node
        call = helper.make_node(node.operator, node.inputs, node.outputs, node.title, domain=node.domain)
        settings = {name: value for name, value in node.attributes.items() if not isinstance(value, tuple) or value}
        call.attribute.extend(helper.make_attribute(name, _attribute(value)) for name, value in settings.items())
        graph = helper.make_graph(
            [call],
            "island",
            [helper.make_tensor_value_info(name, ELEMENTS[value.dtype], None) for name, value in given.items()],
            [ValueInfoProto(name=name) for name in node.outputs if name],
            [numpy_helper.from_array(computed(value).numpy(), name) for name, value in self._constants.items()],
        )
        opsets = {"": PLAIN_OPSET} | {node.domain: node.opset}
        imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)


def find_islands(graph: ParsedGraph, elements: Mapping[str, int]) -> Mapping[str, Island]:
    """The nodes that torch cannot run, by name, in inner graphs too.

    Args:
        graph: Whose nodes.
        elements: ONNX's element types of values, as far as they are known (0 if not).

    Raises:
        UnsupportedOperatorError: one of them cannot be run apart from the graph, or a constant cannot be read.
    """
    graph.check_readable()
    islands: dict[str, Island] = {}
    for node, reason in refused(graph.nodes):
        fits = all(elements.get(name, 0) in HELD for name in (*node.inputs, *node.outputs))
        if not fits or not _stands_alone(node):
            raise refusal(node, reason)
        islands[node.name] = Island(node, str(refusal(node, reason)), graph.constants)
    return islands


def _stands_alone(node: Node) -> bool:
    """Whether all that a node reads and makes are tensors that torch holds, and its settings are known."""
    if node.operator in FINDING_TYPES or any(
        value is UNREADABLE or isinstance(value, Body) for value in node.attributes.values()
    ):
        return False
    try:
        schema = onnx.defs.get_schema(node.operator, node.opset, node.domain)
    except onnx.defs.SchemaError:  # of the runtime's own domains: these know only tensors
        return True
    formal = [*schema.inputs[: len(node.inputs)], *schema.outputs]
    return all(any(_is_held(kind) for kind in parameter.types) for parameter in formal)


def _is_held(kind: str) -> bool:
    return kind.startswith("tensor(") and kind != "tensor(string)"


def _attribute(value: Any) -> Any:
    return numpy_helper.from_array(value.numpy()) if isinstance(value, Tensor) else value
