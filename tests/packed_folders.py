"""Emits tiny models with random formats through the torch backend, for tests."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from random_weights import random_weight
from tiny_transformers import save_tiny_transformer

from guidedq.artifacts.emission import Emission
from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.backends.packed_torch.backend import PackedTorchBackend
from guidedq.frontend import load
from guidedq.frontend.hugging_face import load_hugging_face
from guidedq.ir.model import Model
from guidedq.quant.formats import AffineFormat, EntropyFormat, RoundedFormat

KINDS = ("llama", "tied_llama", "gpt2", "bert", "masked_bert", "resnet")
CANDIDATES = (
    *(AffineFormat(bits=bits, group_size=16) for bits in range(2, 7)),
    AffineFormat(bits=3, group_size=0, symmetric=True),
    AffineFormat(bits=4, group_size=7, outliers=2),
)
CODED = (*CANDIDATES, EntropyFormat(bits=2.5), EntropyFormat(bits=4.0))


def load_kind(kind: str, folder: Path) -> Model:
    """The tiny transformers model of that kind, saved into `folder` and loaded."""
    return load_hugging_face(save_tiny_transformer(kind, folder))


def emit_demo(folder: Path) -> Path:
    """The demo model with random weights and its tokenizer."""
    emit_random(load("demo"), folder, 0, candidates=CODED)
    return folder


def emit_random(
    model: Model,
    folder: Path,
    seed: int,
    scale: float = 0.02,
    candidates: Sequence[RoundedFormat] = CANDIDATES,
) -> tuple[Emission, Mapping[str, QuantizedWeight], int]:
    """Emit random weights, one to eight formats a site; also returns them, and the bytes predicted."""
    backend = PackedTorchBackend()
    footprint = backend.footprint(model, candidates)
    dice = random.Random(seed)
    weights: dict[str, QuantizedWeight] = {}
    predicted_bytes = footprint.base_bytes
    for site in model.graph.quantizable:
        own = footprint.sites[site.name]
        mix = dice.sample(own.formats, dice.randint(1, min(own.segments, len(own.formats))))
        weight = random_weight(site.name, (site.rows, site.columns), mix, dice.getrandbits(30), scale)
        counts = {own.formats.index(segment.format): len(segment.rows) for segment in weight.segments}
        predicted_bytes += own.bytes(counts)
        weights[site.name] = weight
    return backend.emit(model, weights.values(), folder), weights, predicted_bytes
