"""The graph: a directed acyclic graph of operators, and the sites where a weight meets an activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod
from typing import TYPE_CHECKING, Any, final

import networkx as nx
from jaxtyping import Float
from torch import Tensor

from guidedq.errors import ModelError

if TYPE_CHECKING:
    OperatorGraph = nx.DiGraph[str]
else:
    OperatorGraph = nx.DiGraph


class UseKind(StrEnum):
    """How an operator uses a weight."""

    LINEAR = "linear"
    CONVOLUTION = "convolution"
    EMBEDDING = "embedding"
    RECURRENT = "recurrent"
    """A product inside a recurrent layer, of what comes in or of the layer's own states."""


class Storage(StrEnum):
    """How the model stores a weight, relative to the matrix `[out, in]` that guidedq sees."""

    OUT_IN = "out_in"
    """The first axis is `out`, the others together are `in` (Linear, convolutions; an embedding's rows are `out`)."""
    IN_OUT = "in_out"
    """A matrix stored transposed (GPT-2's Conv1D, ONNX MatMul and Gemm without transB)."""
    STACKED = "stacked"
    """All axes but the last together are `out` (ONNX's recurrent layers: direction, gate x hidden)."""
    IN_OUT_KERNEL = "in_out_kernel"
    """`[group x in, out, kernel ...]` (transposed convolutions): group by group, a row for each output."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One operator that reads a weight.

    Attributes:
        operator: Name of the operator's node in the graph, and of the submodule that runs it.
        kind: What the operator does with the weight.
        routed: The model chooses what it reads (an expert of a mixture): with other weights it may read other tokens.
    """

    operator: str
    kind: UseKind
    routed: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A weight with all its uses: the unit that is quantized. Tied weights are one site with several uses.

    Attributes:
        name: The model's own name of the parameter (or initializer).
        shape: Shape as the model stores it.
        storage: How that shape maps to the matrix `[out, in]`.
        uses: At least one.
        input_groups: Rows fall into this many equal blocks, each reading its own inputs (grouped convolutions, the
            states of two directions).
    """

    name: str
    shape: tuple[int, ...]
    uses: tuple[Use, ...]
    storage: Storage = Storage.OUT_IN
    input_groups: int = 1

    @property
    def rows(self) -> int:
        """The `out` axis of the matrix."""
        if self.storage is Storage.STACKED:
            return prod(self.shape[:-1])
        if self.storage is Storage.IN_OUT_KERNEL:
            return self.input_groups * self.shape[1]
        return self.shape[-1] if self.storage is Storage.IN_OUT else self.shape[0]

    @property
    def columns(self) -> int:
        """The `in` axis of the matrix."""
        return prod(self.shape) // self.rows

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def is_linear(self) -> bool:
        """Whether it counts under `--scope linear`: only linear and convolution uses, and not tied to an embedding."""
        return all(use.kind is not UseKind.EMBEDDING for use in self.uses)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The matrix's shape with the axes of its rows and columns apart, in their order."""
        if self.storage is Storage.IN_OUT:
            return self.rows, self.columns
        if self.storage is Storage.IN_OUT_KERNEL:
            return self.input_groups, self.shape[1], self.shape[0] // self.input_groups, *self.shape[2:]
        return self.shape

    @property
    def turned_axes(self) -> tuple[int, int] | None:
        """The axes of `row_shape` that the model stores in the other order, `None` if it stores them so."""
        return {Storage.IN_OUT: (0, 1), Storage.IN_OUT_KERNEL: (1, 2)}.get(self.storage)

    def matrix(self, stored: Tensor) -> Float[Tensor, "out in"]:
        """The stored weight as a float32 matrix `[out, in]`."""
        flat = stored.detach().float()
        if self.turned_axes is not None:
            turned = list(self.row_shape)
            first, second = self.turned_axes
            turned[first], turned[second] = turned[second], turned[first]
            flat = flat.reshape(turned).transpose(first, second)
        return flat.reshape(self.rows, self.columns).contiguous()

    def stored(self, matrix: Float[Tensor, "out in"]) -> Tensor:
        """The matrix in the model's own shape, the inverse of `matrix`."""
        if self.turned_axes is None:
            return matrix.reshape(self.shape)
        return matrix.reshape(self.row_shape).transpose(*self.turned_axes).reshape(self.shape).contiguous()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Operators, data flow and sharing facts of one model.

    Attributes:
        operators: One node per operator that matters, edges for data flow; every node has the attribute `operator`
            (its type's name), and `site` (the name of its weight's site) when it reads one.
        sites: In the order in which data reach them.
        shared_inputs: Groups of two or more sites that read one and the same tensor.
        head: Name of the site that produces a language model's or classifier's logits, if any.
        fused: Groups of sites that must share one format, filled in by a rewrite.
        kept: Sites to be left alone, filled in by a rewrite.
    """

    operators: OperatorGraph
    sites: tuple[Site, ...]
    shared_inputs: tuple[tuple[str, ...], ...] = ()
    head: str | None = None
    fused: tuple[tuple[str, ...], ...] = ()
    kept: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        names = [site.name for site in self.sites]
        if len(set(names)) != len(names):
            raise ModelError("two sites share one name.")
        if not nx.is_directed_acyclic_graph(self.operators):
            raise ModelError("the graph has a circle.")
        known = set(names)
        for group in (*self.shared_inputs, *self.fused, tuple(self.kept)):
            if unknown := set(group) - known:
                raise ModelError(f"the graph speaks of sites that it does not have: {sorted(unknown)}.")

    def site(self, name: str) -> Site:
        """The site called `name`."""
        for site in self.sites:
            if site.name == name:
                return site
        raise ModelError(f"no site is called {name!r}.")

    @property
    def quantizable(self) -> tuple[Site, ...]:
        """The sites that are not kept, in order."""
        return tuple(site for site in self.sites if site.name not in self.kept)

    @property
    def tied(self) -> tuple[Site, ...]:
        """The sites whose weight is used more than once."""
        return tuple(site for site in self.sites if len(site.uses) > 1)

    def with_fused(self, groups: Sequence[Sequence[str]]) -> Graph:
        """The same graph with these groups forced to share one format."""
        return replace(self, fused=tuple(tuple(group) for group in groups))

    def with_kept(self, names: frozenset[str]) -> Graph:
        """The same graph with these sites left alone, besides those that already are."""
        return replace(self, kept=self.kept | names)


def operator_graph(nodes: Sequence[tuple[str, Mapping[str, Any]]], edges: Sequence[tuple[str, str]]) -> OperatorGraph:
    """A frozen networkx graph from nodes (name, attributes) and edges; edges to unknown nodes are dropped."""
    graph: OperatorGraph = nx.DiGraph()
    for name, attributes in nodes:
        graph.add_node(name, **attributes)
    graph.add_edges_from((a, b) for a, b in edges if a in graph and b in graph and a != b)
    return nx.freeze(graph)
