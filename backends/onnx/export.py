"""From a torch module to a compact ONNX graph whose weights keep their own layout."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, final

import torch
from onnx import ModelProto
from torch import Tensor, fx, nn

from guidedq.errors import BackendError
from guidedq.frontend.exported_outputs import with_all_outputs
from guidedq.frontend.transformer_module import TransformerModule, further_outputs, main_output
from guidedq.ir.lifting import trial_batch
from guidedq.ir.model import Model, Objective
from guidedq.ir.program import TorchProgram

from .compaction import fold_constants, shorten_names, store_small, strip

FIXED_SIZE = re.compile(r"\['values'\]\[(\d+)\]\.size\(\)\[(\d+)\].*\bconstant \((\d+)\)")
"""How torch.export says that an axis of one of the inputs has become a constant."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How the exporter calls a module.

    Attributes:
        module: Takes its inputs in order, and gives its outputs in order.
        inputs: Their names.
        values: Inputs to try it with.
        free: For each input the axes of any size.
        outputs: Their names.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    values: tuple[Tensor, ...]
    free: tuple[tuple[int, ...], ...]
    outputs: tuple[str, ...]


def plain_call(model: Model) -> Call:
    """The model's own inputs; its outputs as the model calls them, the main one `logits` or `output`.

    Several outputs of a program that count together are `output_0` and so on.

    Raises:
        BackendError: the model runs outside torch.
    """
    batch, names = trial_batch(model.inputs), [spec.name for spec in model.inputs]
    program = _program(model).module
    module, further, outputs = program, (), ("logits" if model.objective.predicts else "output",)
    if model.objective is Objective.JOINT_VALUES and isinstance(program, fx.GraphModule):
        module, outputs = with_all_outputs(program)
    elif model.objective is Objective.VALUES and isinstance(program, TransformerModule):
        with torch.no_grad():
            further = tuple(further_outputs(program.outputs(**batch)))
    return Call(
        module=_Positional(module, names, further),
        inputs=tuple(names),
        values=tuple(batch[name] for name in names),
        free=tuple(tuple(axis for axis, size in enumerate(spec.shape) if size is None) for spec in model.inputs),
        outputs=(*outputs, *further),
    )


def export_model(model: Model, call: Call, opset: int) -> tuple[ModelProto, Mapping[str, str]]:
    """Export the model's program as it is called.

    Constants are folded, names of anything but inputs and outputs are shortened, and traces of the machine that
    exported are left out. Parameters that fp16 or bf16 hold without loss are stored so.

    Returns:
        The graph, and what each site's weight is called in it.

    Raises:
        BackendError: the program cannot be exported.
    """
    proto = _exported(model, call, opset)
    found = _weight_names(model, _program(model), proto)
    proto = fold_constants(proto, frozenset(found.values()))
    strip(proto)
    renamed = shorten_names(proto, call.inputs, call.outputs)
    names = {site: renamed[name] for site, name in found.items()}
    store_small(proto.graph, frozenset(names.values()))
    return proto, names


def _program(model: Model) -> TorchProgram:
    if not isinstance(model.program, TorchProgram):
        raise BackendError(f"{model.name} runs outside torch and cannot be exported. Give it as an ONNX file.")
    return model.program


@final
class _Positional(nn.Module):
    """The module with its named inputs in order: the exporter does not take a forward of `**inputs`."""

    def __init__(self, module: nn.Module, names: Sequence[str], further: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)
        self.further = tuple(further)

    def forward(self, *values: Tensor) -> Any:
        inputs = dict(zip(self.names, values, strict=True))
        if not self.further:
            return self.module(**inputs)
        assert isinstance(self.module, TransformerModule), "others have one output"
        outputs = self.module.outputs(**inputs)
        return (main_output(outputs), *(further_outputs(outputs)[name] for name in self.further))


def _exported(model: Model, call: Call, opset: int) -> ModelProto:
    """The exporter's graph, before anything is folded: its parameters have the module's names and layout."""
    free = [dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in call.free]
    try:
        with torch.no_grad(), _quiet():
            traced = torch.export.export(call.module, call.values, dynamic_shapes=_as_taken(call.module, free))
            program: Any = torch.onnx.export(
                traced, (), dynamo=True, optimize=False, opset_version=opset, verbose=False
            )
    except Exception as error:  # the model's own code runs here: anything can be raised
        raise BackendError(
            f"{model.name} cannot be exported to ONNX: {_reason(error, call.inputs)} "
            "Use the torch backend, or give the model as an ONNX file."
        ) from error
    return program.model_proto


def _reason(error: BaseException, inputs: Sequence[str]) -> str:
    """What went wrong at the root, in a line: the exporter's own summaries speak of its steps."""
    while error.__cause__ is not None:
        error = error.__cause__
    if fixed := FIXED_SIZE.search(str(error)):
        name, axis, size = inputs[int(fixed[1])], fixed[2], fixed[3]
        return f"axis {axis} of {name} may have any size, but the model's own code fixes it to {size} (by a loop, say)."
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no reason given'}."


def _as_taken(module: nn.Module, free: Sequence[Any]) -> tuple[Any, ...]:
    """One entry for each parameter of the module's `forward`, the last of which takes all that is left."""
    named = len(signature(module.forward).parameters) - 1
    return (*free[:named], tuple(free[named:]))


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
