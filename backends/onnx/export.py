"""From a torch module to a compact ONNX graph whose weights keep their own layout."""

from __future__ import annotations

import logging
import string
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, product
from typing import Any, final

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from guidedq.errors import BackendError
from guidedq.ir.lifting import trial_batch
from guidedq.ir.model import Model, Objective
from guidedq.ir.program import TorchProgram

HELD_ELEMENTS = 256
"""Tensors of this many elements, and all matrices, are kept out of constant folding, so that no weight is changed."""
FOLDING_ROUNDS = 3
"""Passes of constant folding; each can uncover work for the next, and a third changes nothing on usual models."""


def export_model(model: Model, opset: int) -> tuple[ModelProto, Mapping[str, str]]:
    """Export the model's program.

    Inputs are the model's own; the output is called `logits` or `output`. Constants are folded, all other names are
    shortened, and traces of the machine that exported are left out. Parameters that fp16 or bf16 hold without loss
    are stored so.

    Returns:
        The graph, and what each site's weight is called in it.

    Raises:
        BackendError: the program cannot be exported.
    """
    if not isinstance(model.program, TorchProgram):
        raise BackendError(f"{model.name} runs outside torch and cannot be exported. Give it as an ONNX file.")
    proto = _exported(model, model.program.module, opset)
    found = _weight_names(model, model.program, proto)
    proto = _folded(proto, frozenset(found.values()))
    _strip(proto)
    output = "output" if model.objective is Objective.VALUES else "logits"
    renamed = _shorten(proto, [spec.name for spec in model.inputs], output)
    names = {site: renamed[name] for site, name in found.items()}
    _store_small(proto.graph, frozenset(names.values()))
    return proto, names


@final
class _Positional(nn.Module):
    """The module with its named inputs in order: the exporter does not take a forward of `**inputs`."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)

    def forward(self, *values: Tensor) -> Tensor:
        return self.module(**dict(zip(self.names, values, strict=True)))


def _exported(model: Model, module: nn.Module, opset: int) -> ModelProto:
    """The exporter's graph, before anything is folded: its parameters have the module's names and layout."""
    free = [
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(spec.shape) if size is None}
        for spec in model.inputs
    ]
    batch = trial_batch(model.inputs)
    values = tuple(batch[spec.name] for spec in model.inputs)
    adapted = _Positional(module, [spec.name for spec in model.inputs]).eval()
    try:
        with torch.no_grad(), _quiet():
            traced = torch.export.export(adapted, values, dynamic_shapes={"values": tuple(free)})
            program: Any = torch.onnx.export(
                traced, (), dynamo=True, optimize=False, opset_version=opset, verbose=False
            )
    except Exception as error:  # the model's own code runs here: anything can be raised
        reason = str(error).strip().splitlines()
        raise BackendError(
            f"{model.name} cannot be exported to ONNX: {type(error).__name__}: {reason[0] if reason else ''} "
            "Use the torch backend, or give the model as an ONNX file."
        ) from error
    return program.model_proto


@contextmanager
def _quiet() -> Generator[None]:
    """Silence the exporter's remarks on libraries that are not installed."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _weight_names(model: Model, program: TorchProgram, proto: ModelProto) -> Mapping[str, str]:
    """The initializer of every site, by identity of the parameter: a tied weight may be exported under any name."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    aliases: dict[int, list[str]] = {}
    for name, values in program.module.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(values), []).append(name)
    for name, values in program.module.named_buffers(remove_duplicate=False):
        aliases.setdefault(id(values), []).append(name)
    found: dict[str, str] = {}
    for site in model.graph.quantizable:
        known = [site.name, *aliases.get(id(program.parameter(site.name)), [])]
        matches = [name for name in known if name in stored]
        if not matches:
            matches = sorted(name for name in stored if any(name.endswith(f".{alias}") for alias in known))
        if not matches:
            raise BackendError(f"{site.name}: the exported graph has no such parameter. Use the torch backend.")
        found[site.name] = matches[0]
    return found


def _folded(proto: ModelProto, weights: frozenset[str]) -> ModelProto:
    """Fold constants and merge equal nodes; weights take part as inputs, so that none is transposed or merged."""
    from onnxscript import optimizer

    held: dict[str, TensorProto] = {}
    for index in reversed(range(len(proto.graph.initializer))):
        tensor = proto.graph.initializer[index]
        if tensor.name in weights or int(np.prod(tensor.dims)) >= HELD_ELEMENTS or len(tensor.dims) > 1:
            held[tensor.name] = TensorProto.FromString(tensor.SerializeToString())
            del proto.graph.initializer[index]
    given = {entry.name for entry in proto.graph.input}
    proto.graph.input.extend(
        helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)) for name, tensor in held.items()
    )
    folded: ModelProto = optimizer.optimize(proto, num_iterations=FOLDING_ROUNDS)
    read = {name for node in folded.graph.node for name in node.input}
    for index in reversed(range(len(folded.graph.input))):
        if folded.graph.input[index].name not in given:
            del folded.graph.input[index]
    folded.graph.initializer.extend(held[name] for name in sorted(held) if name in read or name in weights)
    return folded


def _strip(proto: ModelProto) -> None:
    """Leave out names of nodes, shapes in between, and what tells of the exporting machine: all count as bytes."""
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.graph.value_info[:]
    proto.ClearField("doc_string")
    proto.graph.ClearField("doc_string")
    proto.graph.name = "g"
    for entry in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        entry.ClearField("doc_string")
        del entry.metadata_props[:]
    for node in proto.graph.node:
        for field in ("name", "doc_string", "domain" if not node.domain else "name", "overload"):
            node.ClearField(field)
        del node.metadata_props[:]
        _drop_defaults(node, proto)
    for index in reversed(range(len(proto.opset_import))):
        domain = proto.opset_import[index].domain
        if domain and not any(node.domain == domain for node in proto.graph.node):
            del proto.opset_import[index]


def _drop_defaults(node: onnx.NodeProto, proto: ModelProto) -> None:
    """Leave out attributes that say what the operator does anyway."""
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    if node.domain or not onnx.defs.has(node.op_type):
        return
    known = onnx.defs.get_schema(node.op_type, versions[""]).attributes
    for index in reversed(range(len(node.attribute))):
        attribute = node.attribute[index]
        default = known[attribute.name].default_value if attribute.name in known else None
        if default is not None and default.type == attribute.type and _value(default) == _value(attribute):
            del node.attribute[index]


def _value(attribute: onnx.AttributeProto) -> Any:
    return helper.get_attribute_value(attribute) if attribute.type else None


def _shorten(proto: ModelProto, inputs: Sequence[str], output: str) -> Mapping[str, str]:
    """Give every value a short name, except the model's inputs and output; gives the new names by the old."""
    graph = proto.graph
    renamed: dict[str, str] = {"": ""}
    renamed.update({entry.name: name for entry, name in zip(graph.input, inputs, strict=True)})
    renamed[graph.output[0].name] = output
    fresh = _short_names({*inputs, output})
    for name in _in_order(graph):
        if name not in renamed:
            renamed[name] = next(fresh)
    for entry in (*graph.input, *graph.output, *graph.initializer):
        entry.name = renamed[entry.name]
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed[name] for name in names]
    return renamed


def _in_order(graph: GraphProto) -> Iterator[str]:
    """Names of values, those that are read most often first, so that they get the shortest names."""
    reads: dict[str, int] = {tensor.name: 0 for tensor in graph.initializer}
    for node in graph.node:
        for name in (*node.input, *node.output):
            reads[name] = reads.get(name, 0) + 1
    return iter(sorted(reads, key=lambda name: -reads[name]))


def _short_names(taken: set[str]) -> Iterator[str]:
    for length in count(1):
        for letters in product(string.ascii_letters, repeat=length):
            name = "".join(letters)
            if name not in taken:
                yield name


def _store_small(graph: GraphProto, weights: frozenset[str]) -> None:
    """Store what fp16 (or bf16) holds exactly in that type, followed by a cast that the runtime folds."""
    casts: list[onnx.NodeProto] = []
    for tensor in graph.initializer:
        if tensor.name in weights or tensor.data_type != TensorProto.FLOAT:
            continue
        values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        half = next(
            (kind for kind in (torch.float16, torch.bfloat16) if torch.equal(values.to(kind).float(), values)), None
        )
        if values.numel() < HELD_ELEMENTS or half is None:
            continue
        name = tensor.name
        stored = helper.make_tensor(
            f"{name}_",
            TensorProto.FLOAT16 if half is torch.float16 else TensorProto.BFLOAT16,
            list(tensor.dims),
            values.to(half).view(torch.int16).numpy().tobytes(),
            raw=True,
        )
        tensor.CopyFrom(stored)
        casts.append(helper.make_node("Cast", [stored.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *(onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node)]
    del graph.node[:]
    graph.node.extend(nodes)
