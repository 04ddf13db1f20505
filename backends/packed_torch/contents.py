"""What goes into the weights file besides packed sites: every other tensor of the model, in 16 bits where it can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isnan
from typing import final

import torch
from torch import Tensor

from guidedq.errors import BackendError
from guidedq.ir.model import Model
from guidedq.ir.program import TorchProgram

_VALUES_AT_ONCE = 1 << 18
"""One megabyte of float32: the steps of the comparison stay in the cache."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor that no allocation changes: its name in the file, and the dtype and shape that it gets there."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its bytes in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Every persistent tensor of a model, sorted by how it is stored.

    Attributes:
        tensors: Those left as they are, widest dtype first, so that each is aligned; tied ones once.
        site_names: All names of each quantizable site's weight, by site.
        tied: Names that share one of `tensors`: from name to stored name.
    """

    tensors: tuple[StoredTensor, ...]
    site_names: Mapping[str, tuple[str, ...]]
    tied: Mapping[str, str]


def contents_of(model: Model) -> Contents:
    """Sort the tensors of a model.

    Raises:
        BackendError: the model does not run as a torch module, or a site is none of its tensors.
    """
    state = model_state(model)
    names_of: dict[int, list[str]] = {}
    for name, values in state.items():
        names_of.setdefault(id(values), []).append(name)
    site_names: dict[str, tuple[str, ...]] = {}
    for site in model.graph.quantizable:
        if site.name not in state:
            raise BackendError(f"{site.name} is no parameter of {model.name}: the torch backend cannot store it.")
        site_names[site.name] = tuple(names_of.pop(id(state[site.name])))
    left = [(names[0], state[names[0]]) for names in names_of.values()]
    tensors = [StoredTensor(name=name, dtype=stored_dtype(values), shape=tuple(values.shape)) for name, values in left]
    tied = {name: names[0] for names in names_of.values() for name in names[1:]}
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    return Contents(tensors=tuple(ordered), site_names=site_names, tied=tied)


def model_state(model: Model) -> Mapping[str, Tensor]:
    """The model's parameters and persistent buffers, tied ones under every name as one and the same tensor.

    Raises:
        BackendError: the model does not run as a torch module.
    """
    if not isinstance(model.program, TorchProgram):
        raise BackendError(f"{model.name} does not run as a torch module. `--backend onnx` can write it.")
    return model.program.module.state_dict(keep_vars=True)


def stored_dtype(values: Tensor) -> torch.dtype:
    """The 16-bit dtype that loses least: fp16 or bf16, by squared error, fp16 on a tie.

    Values that are no floating point numbers, or that neither can hold, stay as they are.
    """
    if not values.is_floating_point():
        return values.dtype
    half_error = _squared_error(values, torch.float16)
    if half_error == 0:
        return torch.float16
    bfloat_error = _squared_error(values, torch.bfloat16)
    if min(half_error, bfloat_error) == inf:
        return values.dtype
    return torch.float16 if half_error <= bfloat_error else torch.bfloat16


def _squared_error(values: Tensor, dtype: torch.dtype) -> float:
    """What storing loses, accumulated in float64; infinity if a value overflows."""
    total = 0.0
    for exact in values.detach().reshape(-1).split(_VALUES_AT_ONCE):
        held = exact.to(dtype).to(exact.dtype)
        total += float(torch.where(held == exact, 0.0, held - exact).double().square().sum())
    return inf if isnan(total) else total
