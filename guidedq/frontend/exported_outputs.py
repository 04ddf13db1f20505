"""What an exported program returns: one tensor, the first or several joined; and all of them again, to be written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from guidedq.errors import ModelError
from guidedq.ir.joint_output import chosen


def keep_first_output(path: Path, graph: fx.Graph) -> tuple[str, ...]:
    """Return the first floating-point tensor alone; gives a notice of the others.

    Raises:
        ModelError: there is none.
    """
    output, results = _results(graph)
    for result in results:
        value = result.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point():
            output.args = (result,)
            others = ", ".join(str(other) for other in results if other is not result)
            told = f"the loss is about the output {str(result)!r}, and that alone is written; not {others}. "
            return (f"{told}An ONNX file keeps all of its outputs.",) if others else ()
    raise ModelError(f"{path}: the program returns no floating-point tensor.")


def counted_outputs(graph: fx.Graph) -> tuple[int, ...]:
    """The places among the returned tensors of those that can count together: floats, with the samples in front.

    The first input's first axis counts the samples. Sizes that depend on values are not known to the export.
    """
    _, results = _results(graph)
    values: list[Any] = [node.meta.get("val") for node in graph.nodes if node.op == "placeholder"]
    first = next((value for value in values if isinstance(value, Tensor) and value.dim()), None)
    if first is None:
        return ()
    places = {result: place for place, result in reversed(list(enumerate(results)))}
    return tuple(sorted(place for result, place in places.items() if _counts(result, first)))


def join_outputs(graph: fx.Graph, places: Sequence[int]) -> tuple[str, ...]:
    """Return those outputs joined, and keep the others in the graph; gives a notice of which count."""
    output, results = _results(graph)
    with graph.inserting_before(output):
        output.args = (graph.call_function(chosen, (tuple(results), tuple(places))),)
    names = output_names(len(results))
    others = ", ".join(name for place, name in enumerate(names) if place not in places)
    counted = ", ".join(names[place] for place in places)
    rest = f"; not about {others}." if others else "."
    return (f"the loss is about the outputs {counted}, each relative to its own size{rest}",)


def output_names(number: int) -> tuple[str, ...]:
    """What the outputs of a program with several are called where it is written."""
    return tuple(f"output_{place}" for place in range(number))


def with_all_outputs(module: fx.GraphModule) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """A program with joined outputs as one that returns each of them once, and their names; parameters are shared.

    Inputs that are handed through are left out.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    joint: Any = graph.graph_copy(module.graph, copies)
    results: Any = joint.args[0]
    once = [place for place, result in enumerate(results) if result not in results[:place]]
    made = [place for place in once if results[place].op != "placeholder"]
    graph.output(tuple(results[place] for place in made))
    graph.erase_node(joint)
    names = output_names(len(results))
    return fx.GraphModule(module, graph), tuple(names[place] for place in made)


def _results(graph: fx.Graph) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """The output node, and the tensors that it returns."""
    output = next(node for node in graph.nodes if node.op == "output")
    results: Any = output.args[0]
    results = results if isinstance(results, (tuple, list)) else (results,)
    nodes = [result for result in results if isinstance(result, fx.Node)]
    return output, tuple(node for node in nodes if isinstance(node.meta.get("val"), Tensor))


def _counts(result: fx.Node, first: Tensor) -> bool:
    value = result.meta.get("val")
    if result.op == "placeholder" or not isinstance(value, Tensor) or not value.is_floating_point() or not value.dim():
        return False
    sized_by_values = any(str(size).startswith("u") for size in value.shape)  # torch's name for such a size
    return str(value.shape[0]) == str(first.shape[0]) and not sized_by_values
