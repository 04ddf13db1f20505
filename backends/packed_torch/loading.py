"""From a folder that `folder.py` wrote to a transformers model whose weights stay packed."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch

from guidedq.artifacts.manifest import Manifest, check_files, read_manifest
from guidedq.errors import ArtifactError

from .folder import CONFIG_NAME, CONTAINER, GENERATION_CONFIG_NAME, WEIGHTS_NAME, quantization_config, read_activations


def load_folder(folder: Path) -> Any:
    """Let transformers build the model that the configuration names, in float32, around the packed weights.

    The manifest says which weights are packed: folders of earlier versions do not tell it in their configuration.

    Raises:
        ArtifactError: a file is missing, truncated, altered, from a newer version, or does not fit the others.
    """
    manifest = read_manifest(folder, CONTAINER)
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        if name not in manifest.files:
            raise ArtifactError(f"{folder}: the manifest does not list {name}. Write the artifact anew.")
    check_files(manifest.files, folder, set(manifest.files) - {WEIGHTS_NAME})  # that one is checked as it is opened
    model = _loaded(folder, manifest)
    return model.eval().requires_grad_(False)


def _loaded(folder: Path, manifest: Manifest) -> Any:
    import transformers

    try:
        names = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["architectures"]
        leaf = getattr(transformers, str(names[0]))
        if not (inspect.isclass(leaf) and issubclass(leaf, transformers.PreTrainedModel)):
            raise ArtifactError(f"{names[0]} is no model class of transformers.")
        kind: Any = leaf.config_class
        config: Any = kind.from_pretrained(folder, local_files_only=True)
        told: Any = getattr(config, "quantization_config", None) or {}
        config.quantization_config = quantization_config(manifest.sites, manifest.tied, read_activations(told))
        if GENERATION_CONFIG_NAME in manifest.files:  # loading the model would pass over one that cannot be read
            transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # configurations can be wrong in as many ways as there are models
        raise _unbuilt(folder, error) from error
    try:
        return leaf.from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    except ArtifactError:
        raise
    except Exception as error:
        raise _unbuilt(folder, error) from error


def _unbuilt(folder: Path, error: Exception) -> ArtifactError:
    import transformers

    return ArtifactError(
        f"{folder / CONFIG_NAME}: transformers {transformers.__version__} cannot build the model from it. "
        f"{type(error).__name__}: {error}"
    )
