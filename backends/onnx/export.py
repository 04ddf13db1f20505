"""From a torch module to a compact ONNX graph whose weights keep their own layout."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from onnx import ModelProto
from torch import Tensor, nn

from guidedq.errors import BackendError
from guidedq.ir.lifting import trial_batch
from guidedq.ir.model import Model, Objective
from guidedq.ir.program import TorchProgram

from .compaction import fold_constants, shorten_names, store_small, strip


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
    proto = fold_constants(proto, frozenset(found.values()))
    strip(proto)
    output = "output" if model.objective is Objective.VALUES else "logits"
    renamed = shorten_names(proto, [spec.name for spec in model.inputs], [output])
    names = {site: renamed[name] for site, name in found.items()}
    store_small(proto.graph, frozenset(names.values()))
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
    adapted = _Positional(module, [spec.name for spec in model.inputs])
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
