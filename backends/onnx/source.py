"""Reading the user's own ONNX file: its graph is kept, and what an exporter left behind is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnx import GraphProto, ModelProto, version_converter

from guidedq.errors import BackendError
from guidedq.frontend.onnx_file import open_onnx
from guidedq.ir.onnx_session import LARGEST_MESSAGE, message_bytes

from .unpacking import SMALLEST_OPSET

EXPORTER_KEYS = ("pkg.torch", "pkg.onnxscript", "namespace")
"""Metadata of nodes that exporters write: stack traces with the exporting machine's paths, names of modules."""
STACK_TRACE = 'File "'


def read_source(path: Path, least_opset: int = SMALLEST_OPSET) -> ModelProto:
    """The model of the file, its tensors loaded, without the exporter's traces.

    Operator sets older than `least_opset` are converted to it: the operators that the writers use begin there.

    Raises:
        ModelError: the file cannot be read.
        BackendError: its operator set is too old and cannot be converted.
    """
    file = open_onnx(path)
    file.load()
    model = file.model
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < least_opset:
        model = _converted(path, model, opset, least_opset)
    _strip_graph(model.graph)
    return model


def _converted(path: Path, model: ModelProto, opset: int, wanted: int) -> ModelProto:
    if (size := message_bytes(model)) > LARGEST_MESSAGE:
        raise BackendError(
            f"{path.name} is written in opset {opset}, expected at least {wanted}, and takes {size} bytes, too many "
            "for the converter, which needs one message. Export it again with a newer opset_version."
        )
    try:
        return version_converter.convert_version(model, wanted)
    except (RuntimeError, ValueError) as error:
        raise BackendError(
            f"{path.name} is written in opset {opset}, expected at least {wanted}, and it cannot be converted "
            f"({error}). Export it again with a newer opset_version, or use the torch backend."
        ) from error


def _strip_graph(graph: GraphProto) -> None:
    _strip_entries((graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer))
    _strip_entries(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip_graph(attribute.g)


def _strip_entries(entries: Any) -> None:
    for entry in entries:
        if STACK_TRACE in entry.doc_string:
            entry.ClearField("doc_string")
        for index in reversed(range(len(entry.metadata_props))):
            if entry.metadata_props[index].key.startswith(EXPORTER_KEYS):
                del entry.metadata_props[index]
