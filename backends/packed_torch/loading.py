"""From a folder that `folder.py` wrote to a transformers model whose weights stay packed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guidedq.artifacts.manifest import Manifest, SiteEntry, check_files, read_manifest
from guidedq.errors import ArtifactError
from guidedq.ir.graph import Storage

from .folder import CONFIG_NAME, CONTAINER, GENERATION_CONFIG_NAME, WEIGHTS_NAME
from .modules import PackedWeight, packed_module


def load_folder(folder: Path) -> Any:
    """Build the model from its configuration, in float32 and evaluation mode, around the packed weights.

    Raises:
        ArtifactError: a file is missing, truncated, altered, from a newer version, or does not fit the others.
    """
    manifest = read_manifest(folder, CONTAINER)
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        if name not in manifest.files:
            raise ArtifactError(f"{folder}: the manifest does not list {name}. Write the artifact anew.")
    check_files(manifest.files, folder)
    model = _skeleton(folder, settings=GENERATION_CONFIG_NAME in manifest.files)
    _fill(model, manifest, folder / WEIGHTS_NAME)
    return model.eval().requires_grad_(False)


def _skeleton(folder: Path, *, settings: bool) -> Any:
    """The model with weights that nobody has written: their memory is reserved, but not yet taken.

    Args:
        folder: Has the configuration, and the settings for generation if `settings`.
        settings: Whether to read these.
    """
    import transformers
    from transformers.initialization import no_init_weights

    try:
        names = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["architectures"]
        leaf = getattr(transformers, str(names[0]))
        if not (inspect.isclass(leaf) and issubclass(leaf, transformers.PreTrainedModel)):
            raise ArtifactError(f"{names[0]} is no model class of transformers.")
        with no_init_weights():
            config: Any = leaf.config_class
            model = leaf(config.from_pretrained(folder, local_files_only=True))
        if settings and model.can_generate():
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
        return model
    except Exception as error:  # configurations can be wrong in as many ways as there are models
        raise ArtifactError(
            f"{folder / CONFIG_NAME}: transformers {transformers.__version__} cannot build the model from it. "
            f"{type(error).__name__}: {error}"
        ) from error


def _fill(model: nn.Module, manifest: Manifest, path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    state = model.state_dict(keep_vars=True)
    packed = {name for site in manifest.sites for name in site.parameters}
    plain = sorted(set(state) - packed - set(manifest.tied))
    try:
        with safe_open(path, framework="pt") as file:
            _same_names(set(file.keys()), {*plain, *(site.name for site in manifest.sites)}, path)
            for site in manifest.sites:
                _place_site(model, site, state, file.get_tensor(site.name))
            for name in plain:
                names = [name, *(other for other, stored in manifest.tied.items() if stored == name)]
                _place_tensor(model, names, state, file.get_tensor(name))
    except SafetensorError as error:
        raise ArtifactError(f"{path} is no readable safetensors file: {error}. Write the artifact anew.") from error


def _same_names(found: set[str], expected: set[str], path: Path) -> None:
    if missing := sorted(expected - found):
        raise ArtifactError(f"{path} lacks {len(missing)} weights of the model, the first is {missing[0]}.")
    if unexpected := sorted(found - expected):
        raise ArtifactError(
            f"{path} holds {len(unexpected)} weights that the model lacks, the first is {unexpected[0]}."
        )


def _place_site(model: nn.Module, site: SiteEntry, state: Mapping[str, Tensor], blob: Tensor) -> None:
    """Replace every module that reads the site's weight; they share its blob."""
    for name in site.parameters:
        _check_shape(name, state, site.shape)
    if blob.dtype is not torch.uint8 or blob.dim() != 1:
        raise ArtifactError(f"{site.name}: expected packed bytes, found {blob.dtype} {list(blob.shape)}.")
    transposed = site.storage == Storage.IN_OUT
    packed = PackedWeight(blob, site.name, site.shape, transposed=transposed)
    for name in site.parameters:
        owner, _, parameter = name.rpartition(".")
        parent, _, child = owner.rpartition(".")
        module = packed_module(model.get_submodule(owner), parameter, packed)
        setattr(model.get_submodule(parent), child, module)


def _place_tensor(model: nn.Module, names: list[str], state: Mapping[str, Tensor], values: Tensor) -> None:
    """Give the parameter or buffer its values, one and the same object under all its names."""
    for name in names:
        _check_shape(name, state, tuple(values.shape))
    first = state[names[0]]
    own = values.to(first.dtype)
    placed = nn.Parameter(own, requires_grad=False) if isinstance(first, nn.Parameter) else own
    for name in names:
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, placed)


def _check_shape(name: str, state: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
    if name not in state:
        raise ArtifactError(f"{name} is no weight of the model that the configuration describes.")
    if tuple(state[name].shape) != shape:
        raise ArtifactError(f"{name}: the model has {list(state[name].shape)}, the artifact {list(shape)}.")
