"""A program on ONNX Runtime, for graphs that cannot be run in torch: outputs and activations, no gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from onnx import ModelProto, ValueInfoProto, helper
from torch import Tensor, nn

from guidedq.errors import ModelError
from guidedq.ir.activation_rounding import ActivationRounding
from guidedq.ir.feeding import fed, in_turns, sample_count
from guidedq.ir.joint_output import one_output
from guidedq.ir.model import InputSpec
from guidedq.ir.onnx_interpreter.rounding_nodes import rounding_nodes
from guidedq.ir.onnx_interpreter.weighted import WeightedNode
from guidedq.ir.onnx_session import LARGEST_MESSAGE, as_array, message_bytes, open_session, run_session
from guidedq.ir.program import AbstractProgram, Batch

TINIEST = float(torch.finfo(torch.float32).tiny)
"""Probabilities are held above this when their logarithm is taken."""
DEFAULTS_FROM_VERSION = 4
"""The version of ONNX's file format from which an initializer may be the default of an input."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardOnlyProgram(AbstractProgram):
    """Runs an ONNX model in ONNX Runtime; sites are inputs with a default, so other weights need no new session.

    Attributes:
        model: The model with its tensors loaded, sites declared as inputs, activations as outputs.
        session: Runs `model`.
        weights: The stored weight of each site.
        weighted: The nodes that read a site, by operator name.
        inputs: The model's own inputs.
        outputs: Names of the outputs that are returned, joined where there are several.
        softmax: Whether the output holds probabilities: their logarithm is returned.
    """

    model: ModelProto
    session: Any
    weights: Mapping[str, Tensor]
    weighted: Mapping[str, WeightedNode]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    softmax: bool = False

    @property
    def differentiable(self) -> bool:
        """Never."""
        return False

    def parameter(self, name: str) -> Tensor:
        """The stored weight of a site."""
        return self.weights[name]

    def operator(self, name: str) -> nn.Module:
        """A module that does what the operator does, with the site's own weight."""
        entry = self.weighted[name]
        return entry.module(nn.Parameter(self.weights[entry.site], requires_grad=False))

    def predict(
        self,
        batch: Batch,
        *,
        weights: Mapping[str, Tensor] | None = None,
        activations: ActivationRounding | None = None,
    ) -> Tensor:
        """The output in float32. Rounding of activations is put into the graph, in a session for this call."""
        session = self.session if activations is None else self._rounding_session(activations)
        found = self._run(session, batch, weights or {}, self.outputs)
        output = one_output({name: found[name] for name in self.outputs}, sample_count(batch)).float()
        return output.clamp_min(TINIEST).log() if self.softmax else output

    def observe(
        self, batch: Batch, operators: Mapping[str, None], *, weights: Mapping[str, Tensor] | None = None
    ) -> Mapping[str, Tensor]:
        """What each operator is given."""
        values = {name: self.weighted[name].activation for name in operators}
        seen = self._run(self.session, batch, weights or {}, sorted(set(values.values())))
        samples = sample_count(batch)
        return {name: self.weighted[name].operand(seen[value], samples) for name, value in values.items()}

    def _rounding_session(self, activations: ActivationRounding) -> Any:
        model = ModelProto()
        model.CopyFrom(self.model)
        for name, block_size in activations.operators.items():
            entry = self.weighted[name]
            columns = entry.shape[0] if entry.storage.value == "in_out" else entry.shape[1]
            opset = next(opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx"))
            rounded, nodes, constants = rounding_nodes(entry.activation, f"{name}/rounded", columns, block_size, opset)
            place, reader = next(
                (index, node) for index, node in enumerate(model.graph.node) if entry.node.outputs[0] in node.output
            )
            reader.input[list(reader.input).index(entry.activation)] = rounded
            for node in reversed(nodes):
                model.graph.node.insert(place, node)
            model.graph.initializer.extend(constants)
        return open_session(model)

    def _run(
        self, session: Any, batch: Batch, weights: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> dict[str, Tensor]:
        return in_turns(self.inputs, batch, lambda part: self._run_part(session, part, weights, wanted))

    def _run_part(
        self, session: Any, batch: Batch, weights: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> dict[str, Tensor]:
        given = fed(self.inputs, batch)
        types = {entry.name: entry.type for entry in session.get_inputs()}
        feeds = {name: as_array(values, types.get(name, "")) for name, values in {**given, **weights}.items()}
        own = [name for name in wanted if name in given]  # an input that an operator reads as it is
        asked = [name for name in wanted if name not in given]
        return run_session(session, asked, feeds) | {name: given[name] for name in own}


def forward_only_program(
    model: ModelProto,
    weights: Mapping[str, Tensor],
    weighted: Sequence[WeightedNode],
    *,
    inputs: Sequence[InputSpec],
    outputs: tuple[str, ...],
    softmax: bool,
) -> ForwardOnlyProgram:
    """Build the program.

    Args:
        model: With tensors loaded and functions inlined; it is copied.
        weights: The stored weight of each site.
        weighted: The nodes that read them.
        inputs: The model's own inputs.
        outputs: Names of the outputs that count.
        softmax: Whether the output holds probabilities.

    Raises:
        ModelError: ONNX Runtime cannot run the model.
    """
    if (size := message_bytes(model)) > LARGEST_MESSAGE:
        raise ModelError(f"the model takes {size} bytes, too many for a forward-only pass: it must fit in one message.")
    open_model = ModelProto()
    open_model.CopyFrom(model)
    _open_graph(open_model, weights, weighted)
    return ForwardOnlyProgram(
        model=open_model,
        session=open_session(open_model),
        weights=dict(weights),
        weighted={entry.operator: entry for entry in weighted},
        inputs=tuple(inputs),
        outputs=outputs,
        softmax=softmax,
    )


def _open_graph(model: ModelProto, weights: Mapping[str, Tensor], weighted: Sequence[WeightedNode]) -> None:
    """Declare every site as an input with a default, and every activation that meets one as an output."""
    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "Constant" and node.output[0] in weights]:
        tensor = next(entry.t for entry in node.attribute if entry.name == "value")
        graph.initializer.append(tensor)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)
    declared = {entry.name for entry in graph.input}
    for tensor in graph.initializer:
        if tensor.name in weights and tensor.name not in declared:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    given = {*declared, *(entry.name for entry in graph.output)}
    for name in dict.fromkeys(entry.activation for entry in weighted):
        if name not in given:
            graph.output.append(ValueInfoProto(name=name))
    model.ir_version = max(model.ir_version, DEFAULTS_FROM_VERSION)
