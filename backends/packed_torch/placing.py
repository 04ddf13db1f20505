"""Packed weights in a transformers model that is being loaded: their bytes first, their modules once these are read.

`expect_bytes` prepares a model on the meta device: where a site has its weight, it gets a parameter that is as long as
the site's blob, under the blob's own name in the weights file. Whatever fills parameters then fills these too, from a
memory-mapped file, on whatever device; the weight in full precision never exists. `place_packed` puts the packed
modules where those parameters were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from guidedq.artifacts.manifest import MANIFEST_NAME, SiteEntry, check_files, read_manifest
from guidedq.errors import ArtifactError, ModelError
from guidedq.frontend.safetensors_header import StoredTensor, read_header
from guidedq.ir.graph import Storage
from guidedq.memory import give_back

from .folder import CONTAINER
from .modules import PackedWeight, packed_module, packed_weight
from .planes import PlaneWeight

PACKED_DTYPE = "U8"
"""Of packed bytes, as safetensors spells it."""
PLACEHOLDER = "packed_placeholder"
"""The parameter without elements of a model that has no other left."""


def check_digests(paths: Iterable[Path]) -> None:
    """Compare weights files with the manifest beside them, if there is one: `save_pretrained` writes none.

    Raises:
        ArtifactError: a file is truncated or altered, or the manifest is damaged or of a newer version.
    """
    for path in paths:
        if (path.parent / MANIFEST_NAME).is_file():
            check_files(read_manifest(path.parent, CONTAINER).files, path.parent, [path.name])


def read_headers(paths: Sequence[Path]) -> Mapping[str, StoredTensor]:
    """What weights files hold, by name.

    Raises:
        ArtifactError: a file is no safetensors file, or not whole.
    """
    stored: dict[str, StoredTensor] = {}
    for path in paths:
        try:
            stored.update(read_header(path))
        except ModelError as error:
            raise ArtifactError(f"{path} is no readable safetensors file: {error}") from error
    return stored


def check_names(
    model: nn.Module, sites: Iterable[SiteEntry], tied: Mapping[str, str], stored: Mapping[str, StoredTensor]
) -> None:
    """Check that the weights file holds every tensor of the model once, and nothing else, in the model's shapes.

    Raises:
        ArtifactError: a tensor is missing, unknown or of another shape.
    """
    state = model.state_dict()
    for site in sites:
        for name in site.parameters:
            _check_shape(name, state, site.shape)
    for name, other in tied.items():
        if other in stored:
            _check_shape(name, state, stored[other].shape)
    plain = set(state) - {name for site in sites for name in site.parameters} - set(tied)
    expected = plain | {site.name for site in sites}
    if missing := sorted(expected - set(stored)):
        raise ArtifactError(f"the weights file lacks {len(missing)} weights of the model, the first is {missing[0]}.")
    if unexpected := sorted(set(stored) - expected):
        raise ArtifactError(
            f"the weights file holds {len(unexpected)} weights that the model lacks, the first is {unexpected[0]}."
        )
    for name in sorted(plain):
        _check_shape(name, state, stored[name].shape)


def expect_bytes(
    model: Any, sites: Iterable[SiteEntry], tied: Mapping[str, str], stored: Mapping[str, StoredTensor]
) -> tuple[tuple[SiteEntry, ...], Mapping[str, str]]:
    """Let the model expect a site's packed bytes where it has the weight; tied weights have no place of their own.

    A base model's names lack the prefix that they have below a head, or the other way round, and some classes call
    their parts otherwise; transformers matches checkpoints to models by the same rules. Sites that are no part of the
    model are left out; a head that the artifact lacks and transformers would tie to a site reads that site.

    Args:
        model: On the meta device.
        sites: As the artifact names them.
        tied: Other parameters that are stored under another's name: from name to stored name.
        stored: What the weights file holds.

    Returns:
        Those of `sites` and `tied` that the model has, under its own names.

    Raises:
        ArtifactError: a weight of the model has another shape, or what is stored for it are no packed bytes.
    """
    state, prefix = model.state_dict(), f"{model.base_model_prefix}."
    renamings = [part for part in get_model_conversion_mapping(model) if isinstance(part, WeightRenaming)]

    def own(name: str) -> str | None:
        renamed = name
        for renaming in renamings:
            renamed, _ = renaming.rename_source_key(renamed)
        spellings = (name.removeprefix(prefix), name, f"{prefix}{name}", renamed, f"{prefix}{renamed}")
        return next((spelling for spelling in spellings if spelling in state), None)

    held = {own(name) for name in stored}
    untied = {name: source for name, source in model.all_tied_weights_keys.items() if name not in held}
    found: list[SiteEntry] = []
    for site in sites:
        name = own(site.name)
        if name is None:
            continue
        names = [other for other in map(own, site.parameters) if other is not None]
        names += [other for other, source in untied.items() if source == name]
        here = replace(site, name=name, parameters=tuple(dict.fromkeys(names)))
        _expect_site(model, here, state, stored.get(site.name))
        found.append(here)
    ties = {own(name): own(other) for name, other in tied.items()}
    known = {name: other for name, other in ties.items() if name is not None and other is not None}
    for name in known:
        _leave_out(model, name)
    _forget_ties(model, {*known, *known.values(), *(name for site in found for name in site.parameters)})
    return tuple(found), known


def place_packed(model: Any, sites: Iterable[SiteEntry], tied: Mapping[str, str], dtype: torch.dtype) -> None:
    """Replace every module that reads a site's weight, once its bytes are there; what is tied is shared.

    Bytes that lie in memory as in the file stay mapped from it. Where some do not, nothing does: a mapped file is
    resident as a whole, since all of it was read.

    Raises:
        ArtifactError: the bytes are damaged.
    """
    unpacked: set[int] = set()
    for site in sites:
        owner, parameter = _owner(model, site.name)
        blob = getattr(owner, parameter).detach()
        transposed = site.storage == Storage.IN_OUT
        stored = blob.cpu()
        packed = packed_weight(stored, site.name, site.shape, transposed=transposed)
        as_stored = any(held is stored for held in packed.buffers())
        packed.to(blob.device, dtype)
        if not as_stored:
            unpacked.update(map(id, packed.buffers()))
        for name in site.parameters:
            path, _, parameter = name.rpartition(".")
            parent, _, child = path.rpartition(".")
            module = packed_module(model.get_submodule(path), parameter, packed)
            setattr(model.get_submodule(parent), child, module)
    for name, other in tied.items():
        owner, attribute = _owner(model, name)
        delattr(owner, attribute)
        shared = model.get_parameter_or_buffer(other)
        register = owner.register_parameter if isinstance(shared, nn.Parameter) else owner.register_buffer
        register(attribute, shared)
    if unpacked:
        _copy_from_file(model, unpacked)
    _hold_places(model, dtype)
    give_back()


def stored_state(model: nn.Module, sites: Iterable[SiteEntry], tied: Mapping[str, str]) -> dict[str, Tensor]:
    """The model's state as a weights file holds it: each site's blob under the site's name, tied tensors once."""
    modules = model.named_modules(remove_duplicate=False)
    packed = {name: module for name, module in modules if isinstance(module, PackedWeight | PlaneWeight)}
    kept = model.state_dict()
    own = [name for name in kept if name.rpartition(".")[2] != PLACEHOLDER]
    state = {name: kept[name] for name in own if name.rpartition(".")[0] not in packed and name not in tied}
    for site in sites:
        path, _, parameter = site.name.rpartition(".")
        held = packed.get(f"{path}.packed") or packed[f"{path}.packed_{parameter}"]
        state[site.name] = held.stored()
    return state


def _hold_places(model: Any, dtype: torch.dtype) -> None:
    """Give models whose weights are all packed, norms having none (OLMo), the parameter that tells device and dtype.

    transformers asks for it when it generates.
    """
    for part in reversed(list(model.modules())):
        if isinstance(part, PreTrainedModel) and next(part.parameters(), None) is None:
            device = next((values.device for values in part.buffers()), torch.device("cpu"))
            empty = torch.empty(0, dtype=dtype, device=device)
            part.register_parameter(PLACEHOLDER, nn.Parameter(empty, requires_grad=False))


def _copy_from_file(model: nn.Module, others: set[int]) -> None:
    """Let no tensor, `others` aside, keep the file mapped."""
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in others and tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, parameter = name.rpartition(".")
    return model.get_submodule(path), parameter


def _expect_site(model: nn.Module, site: SiteEntry, state: Mapping[str, Tensor], stored: StoredTensor | None) -> None:
    if stored is None or stored.dtype != PACKED_DTYPE or len(stored.shape) != 1:
        raise ArtifactError(f"{site.name}: expected packed bytes in the weights file, found {stored or 'nothing'}.")
    if site.name not in site.parameters:
        raise ArtifactError(f"{site.name}: is stored, but not named by its site's parameters. Write the artifact anew.")
    for name in site.parameters:
        _check_shape(name, state, site.shape)
        _leave_out(model, name)
    owner, parameter = _owner(model, site.name)
    delattr(owner, parameter)
    blob = torch.empty(stored.shape, dtype=torch.uint8, device="meta")
    owner.register_parameter(parameter, nn.Parameter(blob, requires_grad=False))


def _leave_out(model: nn.Module, name: str) -> None:
    """Keep a tensor's shape, but let nobody fill, tie or initialize it."""
    owner, attribute = _owner(model, name)
    shape = getattr(owner, attribute).shape
    delattr(owner, attribute)
    setattr(owner, attribute, _initialized(torch.empty(shape, device="meta")))
    path = name.split(".")
    for depth in range(len(path)):
        above = model.get_submodule(".".join(path[:depth]))
        if not _makes_buffers(above):
            _initialized(above)


def _makes_buffers(module: nn.Module) -> bool:
    """Whether its initialization may have buffers to fill that are in no file: its own, or those of its parts."""
    if next(module.buffers(recurse=False), None) is not None:
        return True
    kept = "_non_persistent_buffers_set"  # torch tells it in no other way
    return any(part.__dict__.get(kept) for part in module.modules())


def _initialized(part: Any) -> Any:
    """Marked as transformers marks tensors and modules that its initialization is to leave alone."""
    part.__dict__["_is_hf_initialized"] = True
    return part


def _forget_ties(model: Any, settled: set[str]) -> None:
    """Ties are by name in transformers; those of an artifact are made when the packed modules are placed."""
    others = {name: source for name, source in model.all_tied_weights_keys.items() if not settled & {name, source}}
    for module in model.modules():
        if isinstance(getattr(module, "_tied_weights_keys", None), Mapping):
            module._tied_weights_keys = {}
    model._tied_weights_keys = dict(others)
    model.all_tied_weights_keys = others


def _check_shape(name: str, state: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
    if name not in state:
        raise ArtifactError(f"{name} is no weight of the model that the configuration describes.")
    if tuple(state[name].shape) != shape:
        raise ArtifactError(f"{name}: the model has {list(state[name].shape)}, the artifact {list(shape)}.")
