"""Which of some things to take, where taking one calls for others that cost something and are paid for once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import networkx as nx

SOURCE, SINK = ("source",), ("sink",)


def best_selection(
    gains: Mapping[str, float], costs: Mapping[str, float], needs: Mapping[str, Sequence[str]]
) -> frozenset[str]:
    """The selection of most gain, less the costs of all that it needs.

    A minimum cut (Picard 1976, maximal closure of a graph).

    Args:
        gains: Of each thing; those at or below 0 are never taken.
        costs: Of what is needed, at least 0.
        needs: What each thing needs.
    """
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from((SOURCE, SINK))
    for name, gain in gains.items():
        if gain > 0:
            graph.add_edge(SOURCE, ("thing", name), capacity=gain)
            for other in needs[name]:
                graph.add_edge(("thing", name), ("need", other))  # an edge without a capacity is never cut
                graph.add_edge(("need", other), SINK, capacity=costs[other])
    _, (taken, _) = nx.minimum_cut(graph, SOURCE, SINK)
    return frozenset(node[1] for node in taken if node[0] == "thing")
