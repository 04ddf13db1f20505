"""Models in: from a path or a name to a Model, by whatever frontend reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from guidedq.demo import demo_folder
from guidedq.errors import ModelError
from guidedq.frontend.checkpoint import open_checkpoint
from guidedq.ir.model import Model

__all__ = ["load"]

DEMO = "demo"
KINDS = "a Hugging Face folder, an .onnx file, a .pt2 file (torch.export), a name on the hub (org/name), or 'demo'"
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})


def load(path_or_hub_name: str | Path) -> Model:
    """Load a trained model.

    Args:
        path_or_hub_name: A Hugging Face folder, an `.onnx` or `.pt2` file, `demo`, or a model's name on the Hugging
            Face hub.

    Raises:
        ModelError: there is no such thing, or it cannot be used; the message says why and what to do.
    """
    if path_or_hub_name == DEMO:
        return replace(_load_folder(demo_folder()), name=DEMO)
    path = Path(path_or_hub_name)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file():
        return _load_file(path)
    return _load_from_hub(str(path_or_hub_name))


def _load_folder(folder: Path) -> Model:
    open_checkpoint(folder)  # a folder that cannot be used is refused before transformers' own long import
    from guidedq.frontend.hugging_face import load_hugging_face

    return load_hugging_face(folder)


def _load_file(path: Path) -> Model:
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        from guidedq.frontend.onnx import load_onnx

        return load_onnx(path)
    if suffix == ".pt2":
        from guidedq.frontend.torch_export import load_torch_export

        return load_torch_export(path)
    if suffix == ".safetensors" or path.name == "config.json":
        raise ModelError(
            f"{path} is one file of a model. Give its folder, {path.parent}, which must have a config.json."
        )
    if suffix in PICKLE_SUFFIXES:
        raise ModelError(
            f"{path} looks like a pickle, which holds no graph and can run code when it is read. Export the model with "
            "torch.onnx.export or torch.export.save, or save it with transformers' save_pretrained."
        )
    raise ModelError(f"{path} is not a kind of model that guidedq reads. Expected {KINDS}.")


def _load_from_hub(name: str) -> Model:
    from guidedq.frontend.hub import HUB_NAME, download

    if not HUB_NAME.fullmatch(name) or Path(name).parent.exists():
        raise ModelError(f"no such path: {name}. Expected {KINDS}.")
    return replace(_load_folder(download(name)), name=name.rpartition("/")[2])
