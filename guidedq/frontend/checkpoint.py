"""A Hugging Face folder on disk: find its files, refuse what is unusable in the first second, and hash the content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from guidedq.errors import ModelError
from guidedq.frontend.safetensors_header import FLOAT_DTYPES, StoredTensor, read_header

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
HASHED_BYTES = 1 << 22
"""Bytes read at once while hashing: large enough for the disk, small beside any model."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder whose files are there and whole.

    Attributes:
        folder: Where it lies.
        config: The content of config.json.
        weight_files: The safetensors files, in order of name.
        stored: What they hold, by parameter name.
    """

    folder: Path
    config: Mapping[str, Any]
    weight_files: tuple[Path, ...]
    stored: Mapping[str, StoredTensor]

    @property
    def digest(self) -> str:
        """SHA-256 over the configuration and the weight files, hex; where the folder lies does not matter."""
        state = hashlib.sha256()
        for path in (self.folder / CONFIG, *self.weight_files):
            state.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while part := file.read(HASHED_BYTES):
                    state.update(part)
        return state.hexdigest()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Check a folder's files without reading the weights.

    Raises:
        ModelError: the folder is empty, lacks config.json or a shard, holds pickles only, is already quantized, or a
            file is truncated.
    """
    if not any(folder.iterdir()):
        raise ModelError(f"{folder} is empty: expected {CONFIG} and {SINGLE}, as Hugging Face writes them.")
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} has no {CONFIG}. {_hint_without_config(folder)}")
    config = _json(folder / CONFIG)
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise ModelError(f"{folder} is already quantized ({method}). Give the original, unquantized checkpoint.")
    files, promised = _weight_files(folder)
    stored: dict[str, StoredTensor] = {}
    for path in files:
        stored.update(read_header(path))
    if lost := sorted(promised - set(stored)):
        raise ModelError(f"{folder}: {INDEX} names {len(lost)} weights that no shard holds, the first is {lost[0]}.")
    if foreign := sorted(name for name, tensor in stored.items() if tensor.dtype.startswith("F8")):
        raise ModelError(f"{folder}: {foreign[0]} is {stored[foreign[0]].dtype}: already quantized. Give the original.")
    if not any(tensor.dtype in FLOAT_DTYPES for tensor in stored.values()):
        raise ModelError(f"{folder}: the weight files hold no floating-point weight.")
    return Checkpoint(folder=folder, config=config, weight_files=files, stored=stored)


def _weight_files(folder: Path) -> tuple[tuple[Path, ...], set[str]]:
    """The weight files, and the names of weights that an index promises."""
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,), set()
    if (folder / INDEX).is_file():
        places = _json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ModelError(f"{folder / INDEX} has no weight_map. Download it again.")
        names = sorted({str(place) for place in places.values()})
        if outside := [name for name in names if Path(name).name != name]:
            raise ModelError(f"{folder / INDEX} names a file outside its folder: {outside[0]}.")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ModelError(f"{folder}: {len(missing)} of {len(names)} shards are missing, the first is {missing[0]}.")
        return tuple(folder / name for name in names), set(places)
    pickles = sorted({path.name for pattern in PICKLES for path in folder.glob(pattern)})
    if pickles:
        raise ModelError(
            f"{folder} holds its weights as pickles ({', '.join(pickles[:3])}), which can run code when they are read. "
            f"Convert them to {SINGLE} first:\n{_conversion(folder, pickles)}"
        )
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
    raise ModelError(f"{folder} has no {SINGLE} and no {INDEX}. Found: {found}.")


def _conversion(folder: Path, pickles: list[str]) -> str:
    """The command that turns pickled weights into safetensors; `weights_only` keeps them from running code."""
    chosen = [name for name in pickles if name.startswith("pytorch_model") and name.endswith(".bin")] or pickles[:1]
    code = (
        "import sys, torch; from safetensors.torch import save_file; weights = {}; "
        "[weights.update(torch.load(path, map_location='cpu', weights_only=True)) for path in sys.argv[2:]]; "
        "save_file({name: w.clone().contiguous() for name, w in weights.items()}, sys.argv[1], {'format': 'pt'})"
    )
    paths = " ".join(_quoted(folder / name) for name in chosen)
    return f'    python -c "{code}" {_quoted(folder / SINGLE)} {paths}'


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _hint_without_config(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "It is a LoRA adapter: merge it into its model and save that."
    if others := sorted(path.name for pattern in ("*.onnx", "*.pt2", "*.gguf") for path in folder.glob(pattern)):
        return f"Did you mean the file {others[0]} in it? Give its path."
    return "Expected a Hugging Face folder (config.json, model.safetensors), an .onnx file or a .pt2 file."


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(content).__name__}.")
    return content
