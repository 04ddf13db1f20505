"""Reading an ONNX file: its bytes checked, its external data found and bounded, its functions inlined."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import final

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, TensorProto
from onnx.inliner import inline_local_functions

from guidedq.errors import ModelError
from guidedq.frontend.onnx_rewrites import rewrite

OLDEST_OPSET = 11
"""Older operator sets spell bounds, pads and slices as attributes, which the interpreter does not read."""
NEWEST_OPSET = 25
"""The newest operator set that the interpreter's operators were checked against."""
LARGEST_FILE = (1 << 31) - 1
"""Bytes of a protobuf message."""
LARGEST_TENSOR = 1 << 48
"""Values of a tensor: far more than any machine holds, far less than what overflows 64 bits."""
HASHED_AT_ONCE = 1 << 20
"""Bytes read at once when a file is hashed."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """An ONNX model on disk.

    Attributes:
        path: The file.
        model: Its content, functions inlined; large tensors may still lie in `data_files`.
        data_files: The files of external data, in order of name.
    """

    path: Path
    model: ModelProto
    data_files: tuple[Path, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes of the file and of its external data, hex."""
        state = hashlib.sha256()
        for path in (self.path, *self.data_files):
            with path.open("rb") as stream:
                while block := stream.read(HASHED_AT_ONCE):
                    state.update(block)
        return state.hexdigest()

    def load(self) -> None:
        """Read the external tensors into `model`, and rewrite it so that its weights are found."""
        for tensor in _tensors(self.model.graph):
            if tensor.data_location == TensorProto.EXTERNAL:
                path, offset, length = _place(tensor, self.path)
                tensor.raw_data = np.fromfile(path, dtype=np.uint8, count=length, offset=offset).tobytes()
                tensor.data_location = TensorProto.DEFAULT
                del tensor.external_data[:]
        try:
            rewrite(self.model)
        except (ValueError, TypeError, AttributeError) as error:  # what onnx raises for values that do not fit a shape
            raise ModelError(f"{self.path}: a tensor is damaged: {error}. Export the model again.") from error


def open_onnx(path: Path) -> OnnxFile:
    """Read the file, without its external data, and check what can be checked before any long work.

    Raises:
        ModelError: no such file; it is no ONNX model, or a truncated one; its operator set is too old or too new;
            external data are missing, too short, or outside the model's folder.
    """
    if not path.is_file():
        raise ModelError(f"no such file: {path}.")
    if path.stat().st_size > LARGEST_FILE:
        raise ModelError(
            f"{path} has {path.stat().st_size} bytes, more than the 2 GiB that such a file can have. Export the model "
            "again with external data."
        )
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except DecodeError as error:
        raise ModelError(
            f"{path} is no ONNX model, or a truncated one ({error}). Export or download it again."
        ) from error
    _check_whole(path, model)
    data_files = {_place(tensor, path)[0] for tensor in _tensors(model.graph) if _is_external(tensor)}
    if model.functions:
        model = _inlined(path, model)
    return OnnxFile(path=path, model=model, data_files=tuple(sorted(data_files)))


def _check_whole(path: Path, model: ModelProto) -> None:
    if not model.ir_version or not model.graph.node:
        raise ModelError(
            f"{path} is no ONNX model, or a truncated one: it has no {'nodes' if model.ir_version else 'version'}. "
            "Export or download it again."
        )
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise ModelError(f"{path} names no ONNX operator set: it is truncated. Export or download it again.")
    if not OLDEST_OPSET <= versions[0] <= NEWEST_OPSET:
        raise ModelError(
            f"{path} is written in opset {versions[0]}, expected {OLDEST_OPSET} to {NEWEST_OPSET}. Convert it with "
            "onnx.version_converter, or export it again with another opset_version."
        )
    for tensor in _tensors(model.graph):
        if any(size < 0 for size in tensor.dims) or prod(tensor.dims) > LARGEST_TENSOR:
            raise ModelError(f"{path}: tensor {tensor.name!r} has the shape {list(tensor.dims)}, which cannot be.")
        if not _is_external(tensor):
            _check_size(path, tensor)
    _check_names(path, model.graph)


def _check_names(path: Path, graph: GraphProto) -> None:
    """Refuse a name that two tensors or nodes give to their values."""
    made = Counter(tensor.name for tensor in graph.initializer)
    made.update(name for node in graph.node for name in node.output if name)
    if twice := [name for name, count in made.items() if count > 1]:
        raise ModelError(
            f"{path}: {len(twice)} names stand for two values each, {twice[0]!r} for one. The file is damaged; export "
            "the model again."
        )


def _check_size(path: Path, tensor: TensorProto) -> None:
    """Refuse raw data whose length is not what the shape asks for."""
    if not tensor.HasField("raw_data"):
        return
    expected = _bytes_of(tensor)
    if expected is not None and len(tensor.raw_data) != expected:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} holds {len(tensor.raw_data)} bytes, expected {expected} for its shape "
            f"{list(tensor.dims)}. The file is damaged; export or download it again."
        )


def _bytes_of(tensor: TensorProto) -> int | None:
    """Bytes that the tensor's values take, `None` for types without a fixed width of whole bytes."""
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.STRING:
        return None
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if dtype.name.startswith(("int4", "uint4", "int2", "uint2", "float4")):
        return None
    return prod(tensor.dims) * dtype.itemsize


def _is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def _place(tensor: TensorProto, model_path: Path) -> tuple[Path, int, int]:
    """File, offset and length of an external tensor.

    Raises:
        ModelError: the file is outside the model's folder, missing or too short.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = _inside(model_path, location, tensor.name)
    size = path.stat().st_size
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries["length"]) if "length" in entries else (_bytes_of(tensor) or size - offset)
    except ValueError as error:
        raise ModelError(
            f"{model_path}: tensor {tensor.name!r} has no readable place in {path.name}: {error}."
        ) from error
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} lies at bytes {offset} to {offset + length}, but the file has {size}. "
            "It is truncated; export or download it again."
        )
    expected = _bytes_of(tensor)
    if expected is not None and length != expected:
        raise ModelError(f"{path}: tensor {tensor.name!r} has {length} bytes, expected {expected} for its shape.")
    return path, offset, length


def _inside(model_path: Path, location: str, name: str) -> Path:
    """The external file: it must lie below the model's folder, or below the one that a link to the model points to."""
    parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive
    path = model_path.parent / location
    homes = (model_path.parent.resolve(), model_path.resolve().parent)
    if not location or absolute or ".." in parts or not any(path.resolve().is_relative_to(home) for home in homes):
        raise ModelError(
            f"{model_path}: tensor {name!r} points at {location!r}, outside the model's folder. This is refused; "
            "export the model again with its data beside it."
        )
    if not path.is_file():
        raise ModelError(f"{model_path}: the external data file {location!r} is missing. Put it beside the model.")
    return path


def _inlined(path: Path, model: ModelProto) -> ModelProto:
    try:
        return inline_local_functions(model)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: its functions cannot be inlined: {error}") from error


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor that a graph stores, in initializers and in attributes, branches included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
