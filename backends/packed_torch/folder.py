"""The folder that a Hugging Face model becomes: packed weights, manifest, tokenizer as it was, and the configuration.

`config.json` is the original's with a `quantization_config`, by which `from_pretrained` loads the folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from guidedq.artifacts.manifest import (
    MANIFEST_VERSION,
    Manifest,
    SiteEntry,
    file_entry,
    packed_content,
    write_manifest,
)
from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.errors import ArtifactError, BackendError
from guidedq.ir.model import Model

from .contents import Contents, contents_of, model_state
from .weights_file import write_weights_file

CONTAINER = "packed_torch"
Activations = Literal["none", "int8"]
"""What linear layers do to what they multiply (`integers.py`)."""
ACTIVATIONS_KEY = "activations"
"""Where the configuration tells it, if they do anything."""
METHOD = "guidedq"
"""What transformers is to call the way in which the weights are packed."""
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
COPIED_NAMES = (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "normalizer.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""Files by which transformers builds a model and prepares its inputs. Code is never copied."""


def write_folder(
    model: Model, weights: Iterable[QuantizedWeight], folder: Path, activations: Activations
) -> tuple[Path, Mapping[str, int]]:
    """Write everything into `folder`, and return the weights file and the bytes of each site in it.

    Raises:
        BackendError: the original's configuration is gone, or the weights do not fit the model.
    """
    if not (model.path / CONFIG_NAME).is_file():
        raise BackendError(f"{model.path} has no {CONFIG_NAME} any more: the torch backend copies it from there.")
    contents = contents_of(model)
    path = folder / WEIGHTS_NAME
    sizes = write_weights_file(path, contents.tensors, model_state(model), model.graph.quantizable, weights)
    names = [name for name in COPIED_NAMES if (model.path / name).is_file()]
    for name in names:
        shutil.copyfile(model.path / name, folder / name)
    sites = _sites(model, contents)
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    config["quantization_config"] = quantization_config(sites, contents.tied, activations)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    manifest = Manifest(
        container=CONTAINER,
        model_name=model.name,
        model_source=model.source,
        model_digest=model.digest,
        files={name: file_entry(folder / name) for name in (WEIGHTS_NAME, *names)},
        sites=sites,
        tied=contents.tied,
    )
    write_manifest(manifest, folder)
    return path, sizes


def quantization_config(
    sites: Iterable[SiteEntry], tied: Mapping[str, str], activations: Activations
) -> dict[str, Any]:
    """What the configuration tells transformers, so that it can build the model."""
    rounded = {} if activations == "none" else {ACTIVATIONS_KEY: activations}
    return {"quant_method": METHOD, "version": MANIFEST_VERSION, **rounded, **packed_content(sites, tied)}


def read_activations(content: Mapping[str, Any]) -> Activations:
    """What such a configuration says of activations.

    Raises:
        ArtifactError: nothing that this version knows.
    """
    found = content.get(ACTIVATIONS_KEY, "none")
    if found not in get_args(Activations):
        raise ArtifactError(f"{ACTIVATIONS_KEY} {found!r} in quantization_config: expected none or int8.")
    return found


def _sites(model: Model, contents: Contents) -> tuple[SiteEntry, ...]:
    return tuple(
        SiteEntry(
            name=site.name,
            shape=site.shape,
            storage=site.storage.value,
            parameters=contents.site_names[site.name],
        )
        for site in model.graph.quantizable
    )
