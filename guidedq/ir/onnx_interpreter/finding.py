"""Finding the nodes that read a quantizable weight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from guidedq.ir.graph import Storage, UseKind
from guidedq.ir.onnx_interpreter.dependence import influences
from guidedq.ir.onnx_interpreter.node import Node, with_branches
from guidedq.ir.onnx_interpreter.parsing import ParsedGraph
from guidedq.ir.onnx_interpreter.recurrent import GATES, refusal
from guidedq.ir.onnx_interpreter.tensors import HALF_DTYPES
from guidedq.ir.onnx_interpreter.weighted import INPUT_WEIGHT, STATE_WEIGHT, WeightedNode

WEIGHT_DTYPES = (torch.float32, *HALF_DTYPES)
"""Weights of other types are left alone."""

READERS = {
    "MatMul": (UseKind.LINEAR, (2,)),
    "Gemm": (UseKind.LINEAR, (2,)),
    "Conv": (UseKind.CONVOLUTION, (3, 4, 5)),
    "ConvTranspose": (UseKind.CONVOLUTION, (3, 4, 5)),
    "Gather": (UseKind.EMBEDDING, (2,)),
    **dict.fromkeys(GATES, (UseKind.RECURRENT, (3,))),
}
"""The operators that may read a weight: what they do with it, and how many axes it then has."""
WEIGHT_INPUTS = {"Gather": (0,), **dict.fromkeys(GATES, (INPUT_WEIGHT, STATE_WEIGHT))}
"""Which of their inputs that is, where it is not the second."""
STORAGES = {"ConvTranspose": Storage.IN_OUT_KERNEL, **dict.fromkeys(GATES, Storage.STACKED)}
"""How they read it, where the rows do not come first."""

ROTARY_TOLERANCE = 5e-3
"""How far a table of cosines may be off: four times what rounding to bfloat16 makes of values up to one."""


def find_weighted(graph: ParsedGraph, *, forward_only: bool = False) -> tuple[WeightedNode, ...]:
    """The nodes that read a quantizable weight, in execution order.

    Those in the branches of an If and recurrent layers are among them where torch runs the graph: what they read can
    be seen there alone.

    A weight is left alone if something else reads it too (another kind of node, a branch, an output of the model), or
    if its readers see it in two orientations: then quantizing it would do more than its sites tell.
    """
    transposed = _transposed_weights(graph)
    nodes = graph.nodes if forward_only else with_branches(graph.nodes)
    candidates = [found for node in nodes for found in _weighted(node, graph.constants, transposed)]
    if forward_only:
        candidates = [found for found in candidates if found.kind is not UseKind.RECURRENT]
    absorbed = _absorbed(graph, candidates, transposed)
    by_site: defaultdict[str, list[WeightedNode]] = defaultdict(list)
    for candidate in candidates:
        by_site[candidate.site].append(candidate)
    reads = _read_counts(graph, absorbed)
    spreadable = _spreadable(graph)
    kept: set[str] = set()
    for site, uses in by_site.items():
        only = reads[site] == len(uses)
        whole = all(use.node.inputs[use.index] in (site, *absorbed) for use in uses)
        alike = len({use.storage for use in uses}) == 1 and len({use.groups for use in uses}) == 1
        if only and whole and alike:
            kept.add(site)
    return tuple(
        replace(candidate, spread=candidate.kind is UseKind.EMBEDDING and candidate.node.outputs[0] in spreadable)
        for candidate in candidates
        if candidate.site in kept
    )


def _weighted(node: Node, constants: Mapping[str, Tensor], transposed: Mapping[str, str]) -> Iterator[WeightedNode]:
    """How a node reads its weights, if it does."""
    if not node.domain and node.operator in READERS and not (node.operator in GATES and refusal(node)):
        for index in WEIGHT_INPUTS.get(node.operator, (1,)):
            if (found := _reading(node, index, constants, transposed)) is not None:
                yield found


def _reading(
    node: Node, index: int, constants: Mapping[str, Tensor], transposed: Mapping[str, str]
) -> WeightedNode | None:
    kind, ranks = READERS[node.operator]
    read, activation = node.inputs[index], node.inputs[int(index == 0)]
    site = transposed.get(read, read) if kind is UseKind.LINEAR else read
    weight = constants.get(site)
    if (
        not activation
        or weight is None
        or weight.dtype not in WEIGHT_DTYPES
        or not weight.numel()
        or weight.ndim not in ranks
    ):
        return None
    if activation in constants or node.integer("transA", 0):
        return None
    if kind is UseKind.EMBEDDING and (node.integer("axis", 0) or _is_rotary_table(weight) or _masks(weight)):
        return None
    # each of MatMul's order, Gemm's transB and a Transpose before them turns the matrix once
    turned = kind is UseKind.LINEAR and (node.integer("transB", 0) + (read != site)) % 2 == 0
    storage = STORAGES.get(node.operator, Storage.OUT_IN)
    offset = "" if kind is UseKind.RECURRENT else next(iter(node.inputs[2:]), "")
    return WeightedNode(
        node=node,
        index=index,
        site=site,
        kind=kind,
        storage=Storage.IN_OUT if turned else storage,
        shape=tuple(weight.shape),
        activation=activation,
        bias=offset or None,
    )


def _transposed_weights(graph: ParsedGraph) -> dict[str, str]:
    """Outputs of Transpose nodes that turn a constant matrix, each with the constant's name."""
    return {
        node.outputs[0]: node.inputs[0]
        for node in graph.nodes
        if node.operator == "Transpose"
        and not node.domain
        and node.inputs[0] in graph.constants
        and graph.constants[node.inputs[0]].ndim == 2
        and node.integers("perm", (1, 0)) == (1, 0)
    }


def _absorbed(graph: ParsedGraph, candidates: Sequence[WeightedNode], transposed: Mapping[str, str]) -> frozenset[str]:
    """The transposed weights that nothing but weighted nodes reads: the Transpose is then part of these."""
    expected: defaultdict[str, int] = defaultdict(int)
    for candidate in candidates:
        expected[candidate.node.inputs[candidate.index]] += 1
    reads = _read_counts(graph, frozenset())
    return frozenset(name for name in transposed if reads[name] == expected[name])


def _read_counts(graph: ParsedGraph, absorbed: frozenset[str]) -> defaultdict[str, int]:
    """How often each value is read; reads through an absorbed Transpose count as reads of the weight."""
    sources = {node.outputs[0]: node.inputs[0] for node in graph.nodes if node.outputs[0] in absorbed}
    counts: defaultdict[str, int] = defaultdict(int)
    for node in with_branches(graph.nodes):
        if node.outputs[0] not in absorbed:
            ends = [name for branch in node.branches for name in branch.outputs]
            for name in (*node.inputs, *ends) if node.branches else node.reads:
                counts[sources.get(name, name)] += 1
    for name in graph.outputs.values():
        counts[name] += 1
    return counts


def _spreadable(graph: ParsedGraph) -> frozenset[str]:
    """Values that depend on no input and are only ever added to values that do, so that a sample axis does no harm."""
    depends = influences(graph)
    good: dict[str, bool] = {}
    for node in graph.nodes:
        for name in node.reads:
            adds = node.operator == "Add" and not node.domain and any(depends[other] for other in node.inputs)
            good[name] = good.get(name, True) and adds and not depends[name]
    return frozenset(name for name, holds in good.items() if holds and name not in graph.outputs.values())


def _is_rotary_table(table: Tensor) -> bool:
    """Whether a looked-up table holds the cosines or sines of multiples of angles: rotary positions, no weights.

    Row n is the cosine (or sine) of n times an angle per column, so rows 1 and 2 obey the double-angle formula.
    """
    if table.shape[0] < 3:
        return False
    zero, one, two = table[:3].float()
    if not bool(one.any()) or float(one.abs().max()) > 1:
        return False
    cosines = bool((zero == 1).all()) and _near(two, 2 * one * one - 1)
    sines = not bool(zero.any()) and _near(two, 2 * one * (1 - one * one).sqrt())
    return cosines or sines


def _masks(table: Tensor) -> bool:
    """Whether what is looked up is added to scores that it can rule out: minus infinity, and what is no damage."""
    smallest, largest = (float(bound) for bound in table.aminmax())
    return smallest == -float("inf") and largest < float("inf")


def _near(left: Tensor, right: Tensor) -> bool:
    return float((left - right).abs().max()) < ROTARY_TOLERANCE
