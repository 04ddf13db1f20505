"""Where the zoo's models come from, and what all their makers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Folders in which models and texts are looked for, and the seed of every draw."""

    folders: Sequence[Path]
    seed: int

    def find(self, name: str) -> Path:
        """The first of this name.

        Raises:
            FileNotFoundError: no folder has it.
        """
        for folder in self.folders:
            if (folder / name).exists():
                return folder / name
        raise FileNotFoundError(f"{name} is in none of {', '.join(map(str, self.folders))}")

    def generator(self) -> np.random.Generator:
        """Draws of this seed."""
        return np.random.default_rng(self.seed)


def store(model: onnx.ModelProto, folder: Path) -> Path:
    """The model as `model.onnx`, without traces of its source: stack traces, notes, shapes that can be inferred."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(bare(model), str(path))
    return path


def bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself without notes; the file's own metadata stays."""
    _strip(model.graph)
    for function in model.functions:
        function.doc_string = ""
        del function.value_info[:]
        _strip_nodes(function)
    model.doc_string = ""
    return model


def _strip(graph: onnx.GraphProto) -> None:
    for part in (*graph.initializer, *graph.input, *graph.output, graph):
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:]
    _strip_nodes(graph)


def _strip_nodes(graph: Any) -> None:
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip(attribute.g)


class OneOutput(nn.Module):
    """A model of transformers that takes tensors by position and gives one of its outputs."""

    def __init__(self, model: nn.Module, inputs: Sequence[str], output: str) -> None:
        super().__init__()
        self.model, self.names, self.output = model, tuple(inputs), output

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        """The output."""
        return getattr(self.model(**dict(zip(self.names, values, strict=True))), self.output)


def export(module: OneOutput, examples: Sequence[torch.Tensor], path: Path, *, axes: Sequence[dict[int, str]],
           dynamo: bool, opset: int) -> onnx.ModelProto:  # fmt: skip
    """What one of PyTorch's two exporters writes; `axes` are the free ones of each input."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(module.names)
    if dynamo:
        free = (dict.fromkeys(dims, torch.export.Dim.DYNAMIC) for dims in axes)
        shapes: dict[str, Any] = {"dynamic_shapes": (tuple(free),), "external_data": False, "verbose": False}
    else:
        shapes = {"dynamic_axes": {**dict(zip(names, axes, strict=True)), module.output: {0: "n"}}}
        shapes["dynamic_axes"][module.output] |= {1: "s"}
    torch.onnx.export(
        module.eval(), tuple(examples), str(path), dynamo=dynamo, opset_version=opset,
        input_names=names, output_names=[module.output], **shapes,
    )  # fmt: skip
    return onnx.load(str(path))
