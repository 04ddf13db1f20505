"""An ONNX graph as a torch module: differentiable, its weights replaceable, its weighted nodes submodules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from torch import Tensor, nn

from guidedq.ir.feeding import fed, in_turns, sample_count
from guidedq.ir.joint_output import one_output
from guidedq.ir.model import InputSpec
from guidedq.ir.onnx_interpreter.execution import failure, run_node
from guidedq.ir.onnx_interpreter.islands import Island
from guidedq.ir.onnx_interpreter.node import Node, Value
from guidedq.ir.onnx_interpreter.parsing import ParsedGraph
from guidedq.ir.onnx_interpreter.recurrent import GATES, recurrent
from guidedq.ir.onnx_interpreter.table import refusal, refused
from guidedq.ir.onnx_interpreter.tensors import computed, computing_dtype
from guidedq.ir.onnx_interpreter.weighted import WeightedNode, by_node, reads


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    node: Node
    reads: tuple[str, ...]
    frees: tuple[str, ...]


@final
class OnnxInterpreter(nn.Module):
    """Runs the nodes that the output depends on, one after another.

    Every weighted node is a submodule of its name, holds its `weight` as the file stores it (computed in float32), and
    is called with the activation and the bias, so a forward hook on it sees x and y; a recurrent layer has one for each
    of its weights. `aliases` maps a site's name to the path of its parameter. All other 16-bit floats are held in
    float32. A value is let go after its last use. Every floating point value passes through a submodule that leaves it
    as it is, `values` says through which: a hook on it changes the value for all that read it.
    """

    def __init__(
        self,
        graph: ParsedGraph,
        weighted: Sequence[WeightedNode],
        *,
        inputs: Sequence[InputSpec],
        output: str | tuple[str, ...],
        islands: Mapping[str, Island] | None = None,
    ) -> None:
        """Build it.

        Args:
            graph: What to run.
            weighted: The nodes of `graph` that are to be submodules.
            inputs: What the graph takes.
            output: Name of the value to return, or of several, which are returned joined.
            islands: Nodes that ONNX Runtime runs, by name.

        Raises:
            UnsupportedOperatorError: an operator cannot be run; the message names it and its node.
        """
        super().__init__()
        self._weighted = by_node(weighted)
        self._outputs = (output,) if isinstance(output, str) else output
        self._steps = _schedule(graph, self._weighted, self._outputs)
        self._islands = dict(islands or {})
        for node, reason in refused(step.node for step in self._steps):
            if node.name not in self._islands:
                raise refusal(node, reason)
        graph.check_readable()
        self._inputs = tuple(inputs)
        self.aliases: dict[str, str] = {}
        self._hold_weights(graph)
        self.passages = nn.Module()
        self.values: dict[str, str] = {}
        self._lay_passages()
        self.constants = nn.Module()
        self._constant_names: dict[str, str] = {}
        self._hold_constants(graph)

    def forward(self, **inputs: Tensor) -> Tensor:
        """The output for named inputs, in float32 if it is a 16-bit float in the graph; several are joined.

        Raises:
            ModelError: an input is missing or unknown, or an operator fails; the message names the node.
        """
        return one_output(in_turns(self._inputs, inputs, self._run_all), sample_count(inputs))

    def _run_all(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        values = self._start(inputs)
        samples = sample_count(inputs)
        for step in self._steps:
            results = self._run(step.node, values, samples=samples)
            for name, result in zip(step.node.outputs, results, strict=False):
                if name:
                    values[name] = self._passed(name, result)
            for name in step.frees:
                values.pop(name, None)
        outputs = {name: values[name] for name in self._outputs}
        return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}

    def _run(self, node: Node, values: Mapping[str, Value], *, samples: int) -> tuple[Value, ...]:
        if node.name in self._islands:
            return self._islands[node.name].run(values)
        if node.name not in self._weighted:
            return run_node(node, values, partial(self._run, samples=samples))
        if node.operator in GATES:
            return self._run_recurrent(node, values)
        (weighted,) = self._weighted[node.name]
        activation = values[weighted.activation]
        bias = values[weighted.bias] if weighted.bias else None
        assert isinstance(activation, Tensor)
        assert not isinstance(bias, list)
        try:
            operand = weighted.operand(activation, samples)
            offset = weighted.offset(bias)
            arguments = (operand,) if offset is None else (operand, offset)
            result: Tensor = self.get_submodule(node.name)(*arguments)
            parted = operand.ndim > activation.ndim and not weighted.spread
            return (result.flatten(0, 1) if parted else result,)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise failure(node, values, error) from error

    def _run_recurrent(self, node: Node, values: Mapping[str, Value]) -> tuple[Value, ...]:
        inputs: list[Any] = [values.get(name) for name in node.inputs]
        for entry in self._weighted[node.name]:
            inputs[entry.index] = self.get_submodule(entry.operator)
        try:
            return recurrent(node, *inputs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise failure(node, values, error) from error

    def _start(self, inputs: Mapping[str, Tensor]) -> dict[str, Value]:
        values: dict[str, Value] = {name: getattr(self.constants, leaf) for name, leaf in self._constant_names.items()}
        given = fed(self._inputs, inputs)
        for spec in self._inputs:
            values[spec.name] = self._passed(spec.name, given[spec.name].to(computing_dtype(spec.dtype)))
        return values

    def _passed(self, name: str, value: Value) -> Value:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return self.get_submodule(self.values[name])(value) if floating else value

    def _lay_passages(self) -> None:
        """A submodule for every value that is an input or an output of a node."""
        made = (name for step in self._steps for name in step.node.outputs if name)
        for number, name in enumerate(dict.fromkeys((*(spec.name for spec in self._inputs), *made))):
            self.passages.add_module(f"v{number}", nn.Identity())
            self.values[name] = f"passages.v{number}"

    def _hold_weights(self, graph: ParsedGraph) -> None:
        """Make the submodules; uses of one site share its parameter."""
        parameters: dict[str, nn.Parameter] = {}
        for weighted in (entry for entries in self._weighted.values() for entry in entries):
            if weighted.site not in parameters:
                parameters[weighted.site] = nn.Parameter(graph.constants[weighted.site], requires_grad=False)
            module = weighted.module(parameters[weighted.site])
            owner, _, leaf = weighted.operator.rpartition(".")
            if owner and owner not in self._modules:
                self.add_module(owner, nn.Module())
            self.get_submodule(owner).add_module(leaf, module)
            path = next(path for path, _ in module.named_parameters())
            self.aliases.setdefault(weighted.site, f"{weighted.operator}.{path}")

    def _hold_constants(self, graph: ParsedGraph) -> None:
        held = {entry.site for entries in self._weighted.values() for entry in entries}
        read = ({name for step in self._steps for name in step.reads} | set(self._outputs)) - held
        for index, (name, value) in enumerate(graph.constants.items()):
            if name in read:
                self._constant_names[name] = f"c{index}"
                self.constants.register_buffer(f"c{index}", computed(value))


def _schedule(
    graph: ParsedGraph, weighted: Mapping[str, tuple[WeightedNode, ...]], outputs: Sequence[str]
) -> tuple[_Step, ...]:
    """The nodes that the outputs depend on, each with the values that nobody needs after it."""
    needed = set(outputs)
    steps: list[_Step] = []
    for node in reversed(graph.nodes):
        if not any(name in needed for name in node.outputs):
            continue
        read = reads(node, weighted.get(node.name, ()))
        made = [name for name in node.outputs if name]
        last = [name for name in dict.fromkeys((*read, *made)) if name not in needed]
        needed.update(read)
        steps.append(_Step(node=node, reads=read, frees=tuple(last)))
    return tuple(reversed(steps))
