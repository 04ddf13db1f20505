"""Which inputs each value of a graph depends on."""

from __future__ import annotations

from guidedq.ir.onnx_interpreter.parsing import ParsedGraph

MEASURING = frozenset({"Shape", "Size"})
"""Operators whose result depends on the shape of what they read, and on no value."""


def influences(graph: ParsedGraph) -> dict[str, frozenset[str]]:
    """For every value, the inputs whose values (not only shapes) it depends on."""
    nothing = frozenset[str]()
    found: dict[str, frozenset[str]] = {name: frozenset({name}) for name in graph.inputs}
    found.update(dict.fromkeys((*graph.constants, *graph.unreadable), nothing))
    for node in graph.nodes:
        read = nothing if node.operator in MEASURING else nothing.union(*(found[name] for name in node.reads))
        found.update(dict.fromkeys(node.outputs, read))
    found[""] = nothing
    return found
