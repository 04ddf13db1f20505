"""Models of a few hundred weights, built by hand, for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from guidedq.ir.graph import Graph, Site, Use, UseKind, operator_graph
from guidedq.ir.model import InputSpec, Model, Objective
from guidedq.ir.program import TorchProgram

VOCABULARY, WIDTH, HIDDEN = 24, 8, 12


class TinyLanguageModel(nn.Module):
    """Embedding, two linear layers that mix neighbouring positions, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        mixed = hidden + 0.5 * torch.roll(hidden, 1, dims=1)
        hidden = hidden + self.down(torch.tanh(self.up(mixed)))
        return self.head(hidden)


class StackedLanguageModel(nn.Module):
    """Three blocks of two linear layers in a module list, an embedding and a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, WIDTH)) for _ in range(3)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = hidden + layer(torch.roll(hidden, 1, dims=1))
        return self.head(hidden)


class TinyConvolution(nn.Module):
    """Two convolutions, one of them grouped, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, stride=2)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2, bias=False)
        self.classify = nn.Linear(4, 5)

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.first(image))
        return self.classify(self.grouped(hidden).mean((2, 3)))


def tiny_language_model(seed: int = 0) -> Model:
    """`TinyLanguageModel` with random weights."""
    sites = (
        _site("embed.weight", (VOCABULARY, WIDTH), ("embed", UseKind.EMBEDDING), ("head", UseKind.LINEAR)),
        _site("up.weight", (HIDDEN, WIDTH), ("up", UseKind.LINEAR)),
        _site("down.weight", (WIDTH, HIDDEN), ("down", UseKind.LINEAR)),
    )
    spec = InputSpec(name="input_ids", dtype=torch.int64, shape=(None, None))
    return _model(TinyLanguageModel, sites, Objective.LANGUAGE_MODEL, spec, seed, vocabulary_size=VOCABULARY)


def stacked_language_model(seed: int = 0) -> Model:
    """`StackedLanguageModel` with random weights."""
    linear = [(f"layers.{index}.{part}", part) for index in range(3) for part in (0, 2)]
    sites = (
        _site("embed.weight", (VOCABULARY, WIDTH), ("embed", UseKind.EMBEDDING)),
        *(
            _site(f"{name}.weight", (WIDTH, HIDDEN) if part else (HIDDEN, WIDTH), (name, UseKind.LINEAR))
            for name, part in linear
        ),
        _site("head.weight", (VOCABULARY, WIDTH), ("head", UseKind.LINEAR)),
    )
    spec = InputSpec(name="input_ids", dtype=torch.int64, shape=(None, None))
    return _model(StackedLanguageModel, sites, Objective.LANGUAGE_MODEL, spec, seed, vocabulary_size=VOCABULARY)


def tiny_convolution(seed: int = 0) -> Model:
    """`TinyConvolution` with random weights."""
    sites = (
        _site("first.weight", (4, 2, 3, 3), ("first", UseKind.CONVOLUTION)),
        Site(
            name="grouped.weight",
            shape=(4, 2, 3, 3),
            uses=(Use(operator="grouped", kind=UseKind.CONVOLUTION),),
            input_groups=2,
        ),
        _site("classify.weight", (5, 4), ("classify", UseKind.LINEAR)),
    )
    spec = InputSpec(name="image", dtype=torch.float32, shape=(None, 2, 9, 9))
    return _model(TinyConvolution, sites, Objective.CLASSIFIER, spec, seed)


def _site(name: str, shape: tuple[int, ...], *uses: tuple[str, UseKind]) -> Site:
    return Site(name=name, shape=shape, uses=tuple(Use(operator=operator, kind=kind) for operator, kind in uses))


def _model(
    build: type[nn.Module],
    sites: tuple[Site, ...],
    objective: Objective,
    spec: InputSpec,
    seed: int,
    vocabulary_size: int | None = None,
) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build().eval().requires_grad_(False)
    operators = [(use.operator, site) for site in sites for use in site.uses]
    nodes = [
        (name, {"operator": type(module.get_submodule(name)).__name__, "site": site.name}) for name, site in operators
    ]
    return Model(
        name=build.__name__,
        path=Path(),
        source="hugging_face",
        digest=f"{build.__name__}-{seed}",
        graph=Graph(operators=operator_graph(nodes, []), sites=sites),
        program=TorchProgram(module=module),
        objective=objective,
        inputs=(spec,),
        parameters=sum(p.numel() for p in module.parameters()),
        vocabulary_size=vocabulary_size,
    )
