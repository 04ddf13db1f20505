"""What the peers' runners share; runs in a peer's own environment, which has torch, transformers and safetensors.

    python run_PEER.py MODEL CALIBRATION.npz BITS OUT [OPTION...]

A runner quantizes the linear layers of a Hugging Face language model, head and embeddings left alone, with the
calibration tokens `input_ids [sequence, token]`. It leaves in OUT the weights that came of it (`weights.safetensors`,
float32, by module) and `result.json`: version, settings, seconds, peak memory, and the bytes that the peer stores for
these layers, with everything that is no integer (scales, zero points) counted at 16 bits whatever it is stored in.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

GROUP = 64
"""Weights that share a scale."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a runner is asked for."""

    model: str
    tokens: Tensor
    bits: float
    scratch: Path
    options: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a runner made: the model with its quantized modules, their bytes, and what was set."""

    model: nn.Module
    bytes: int
    settings: str


def run(package: str, quantize: Callable[[Task], Result]) -> None:
    """Read the command line, quantize, write."""
    model, calibration, bits, out, *options = sys.argv[1:]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokens = torch.from_numpy(np.load(calibration)["input_ids"])
    names = {name: module.weight.shape for name, module in linears(load(model)).items()}
    task = Task(model=model, tokens=tokens, bits=float(bits), scratch=folder / "stored", options=tuple(options))
    start, before = time.perf_counter(), time.process_time()
    result = quantize(task)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - before
    weights = {name: weight_of(result.model.get_submodule(name), shape[1]) for name, shape in names.items()}
    save_file(weights, str(folder / "weights.safetensors"))
    numbers = sum(shape.numel() for shape in names.values())
    record = {
        "version": version(package),
        "settings": result.settings,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": torch.get_num_threads(),
        "bytes": result.bytes,
        "bits": 8 * result.bytes / numbers,
    }
    (folder / "result.json").write_text(json.dumps(record, indent=1) + "\n")


def load(model: str, dtype: torch.dtype = torch.float32) -> Any:
    """The original."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()


def tokenizer(model: str) -> Any:
    """Its tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that are quantized, by name."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: module for name, module in found.items() if not name.endswith("lm_head")}


def group_size(columns: int, limit: int = GROUP) -> int:
    """The largest group that divides a row: 64 where it can be."""
    return max(size for size in range(1, limit + 1) if columns % size == 0)


def by_group_size(layers: Mapping[str, nn.Linear]) -> dict[int, list[str]]:
    """Layers by the size of their groups, for tools that want all groups whole."""
    found: dict[int, list[str]] = {}
    for name, layer in layers.items():
        found.setdefault(group_size(layer.in_features), []).append(name)
    return found


@torch.no_grad()
def weight_of(module: Any, columns: int) -> Tensor:
    """What a quantized linear layer multiplies by, `[out, in]`, whatever its class: its answer to the unit vectors."""
    floating = [p.dtype for p in [*module.parameters(), *module.buffers()] if p.is_floating_point()]
    unit = torch.eye(columns, dtype=floating[0] if floating else torch.float32)
    answer = module(unit).float()
    bias = getattr(module, "bias", None)
    return (answer if bias is None else answer - bias.float()).t().contiguous()


def stored_bytes(tensors: Iterable[tuple[str, Tensor]], layers: Mapping[str, Any] | Iterable[str]) -> int:
    """Bytes of all tensors of these layers but biases; floating ones at two bytes a number."""
    prefixes = tuple(f"{name}." for name in layers)
    total = 0
    for name, tensor in tensors:
        if name.startswith(prefixes) and not name.endswith(".bias"):
            total += tensor.numel() * (2 if tensor.is_floating_point() else tensor.element_size())
    return total


def tensors_in(folder: Path) -> Iterable[tuple[str, Tensor]]:
    """All tensors of the safetensors files under a folder."""
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(str(file), "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # no mapping
                yield name, opened.get_tensor(name)
