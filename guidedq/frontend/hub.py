"""Models by their name on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download

from guidedq.errors import ModelError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""Configuration, weights and tokenizers; no pickles and no code."""


def download(name: str) -> Path:
    """The local folder of a model on the hub, downloaded unless it is in the cache.

    Raises:
        ModelError: there is no such model, or the hub cannot be reached and the cache does not have it.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except Exception as error:  # what the connection raises depends on the version of the hub's client
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"no path {name}, and as a model on the Hugging Face hub it cannot be had: {reason} "
            "Check the name and the connection, or give a folder."
        ) from error
