"""What a model or an artifact consists of, as plain values, and a model's graph as a Graphviz drawing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guidedq.artifacts.report import Report
from guidedq.ir.graph import Graph
from guidedq.ir.model import Model


def model_facts(model: Model) -> dict[str, Any]:
    """The model, its sites and what they share."""
    graph = model.graph
    return {
        "model": {
            "name": model.name,
            "source": model.source,
            "digest": model.digest,
            "objective": model.objective.value,
            "unit": model.objective.unit,
            "parameters": model.parameters,
            "operators": graph.operators.number_of_nodes(),
            "inputs": [
                {"name": spec.name, "dtype": str(spec.dtype).removeprefix("torch."), "shape": list(spec.shape)}
                for spec in model.inputs
            ],
            "notices": list(model.notices),
        },
        "sites": [
            {
                "name": site.name,
                "operator": str(graph.operators.nodes[site.uses[0].operator]["operator"]),
                "shape": list(site.shape),
                "parameters": site.parameters,
                "share": site.parameters / model.parameters,
                "uses": [use.operator for use in site.uses],
                "kept": site.name in graph.kept,
            }
            for site in graph.sites
        ],
        "shared_inputs": [list(group) for group in graph.shared_inputs],
        "head": graph.head,
    }


def artifact_facts(report: Report) -> dict[str, Any]:
    """An artifact's sites, from its report."""
    return {
        "model": {
            "name": report.model.name,
            "source": report.model.source,
            "digest": report.model.digest,
            "objective": report.model.objective,
            "unit": report.model.unit,
            "parameters": report.model.parameters,
        },
        "size": {
            "file_bytes": report.size.file_bytes,
            "bits_per_weight": report.size.bits_per_weight,
            "linear_bits_per_weight": report.size.linear_bits_per_weight,
        },
        "sites": [
            {
                "name": site.name,
                "operator": site.operator,
                "shape": list(site.shape),
                "format": site.format,
                "bits": site.bits,
                "bytes": site.bytes,
                "distortion": site.distortion,
                "rows": dict(site.rows),
            }
            for site in report.sites
        ],
    }


def dot(graph: Graph, name: str) -> str:
    """The operators as a Graphviz digraph; those that read a weight are boxes with the site's name and shape."""
    shapes = {site.name: site.shape for site in graph.sites}
    lines = [f"digraph {_quoted(name)} {{", "  rankdir=TB;", '  node [shape=plaintext, fontname="Helvetica"];']
    for node, attributes in graph.operators.nodes(data=True):
        lines.append(f"  {_quoted(node)} [{_attributes(attributes, shapes)}];")
    lines += [f"  {_quoted(source)} -> {_quoted(target)};" for source, target in graph.operators.edges]
    return "\n".join([*lines, "}"]) + "\n"


def _attributes(attributes: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str:
    operator = str(attributes["operator"])
    site = attributes.get("site")
    if site is None:
        return f"label={_quoted(operator)}"
    shape = " x ".join(map(str, shapes.get(site, ())))
    words = [_escaped(word) for word in (operator, str(site), shape) if word]
    label = "\\n".join(words)
    return f'shape=box, label="{label}"'


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    """Inside a quoted Graphviz string; a line feed would be allowed but is never wanted."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
