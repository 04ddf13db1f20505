"""Filling the skeleton: the model file, its bytes the same for the same inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.errors import BackendError

from .accounting import names_length
from .patch import (
    DATA_FILE,
    EXTERNAL_ALIGNMENT,
    INLINE_BYTES,
    LOADING,
    Patch,
    Shared,
    StoredTensor,
    names_of_length,
    refer_to_data_file,
    stored_values,
)
from .settings import Settings
from .site_writer import segments_of, write_site
from .skeleton import Skeleton
from .unpacking import DOMAIN, RUNTIME_DOMAIN, library

MODEL_FILE = "model.onnx"
FUNCTIONS_IR_VERSION = 8
"""The first version of the file format that has model-local functions."""
SMALL_INTEGERS_IR_VERSION = 10
"""The first with 4-bit integers; 2-bit integers came with an operator set that has a later version anyway."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        files: The model itself first.
        site_bytes: Bytes of each site.
        tensors: The site that each stored tensor belongs to.
    """

    files: tuple[Path, ...]
    site_bytes: Mapping[str, int]
    tensors: Mapping[str, str]


def write_model(skeleton: Skeleton, weights: Iterable[QuantizedWeight], settings: Settings, folder: Path) -> Written:
    """Write the model into `folder`.

    Weights are taken one by one. The skeleton is used up: it becomes the model.

    Raises:
        BackendError: a weight belongs to no site, or a site gets no weight.
    """
    shared = Shared(names=names_of_length(names_length(skeleton), skeleton.names))
    nodes: dict[int, list[NodeProto]] = {LOADING: []}
    removed: set[int] = set()
    sizes: dict[str, int] = {}
    tensors: dict[str, str] = {}
    missing = dict.fromkeys(skeleton.slots)
    with (folder / DATA_FILE).open("wb") if settings.external else _Nowhere() as stream:
        store = _Store(skeleton.proto, stream if settings.external else None)
        store.move_initializers()
        for weight in weights:
            if weight.name not in missing:
                raise BackendError(f"{weight.name}: no site of that name is left to be written.")
            del missing[weight.name]
            slot = skeleton.slots[weight.name]
            patch = Patch(shared=shared)
            replaced = write_site(patch, slot, segments_of(weight), settings)
            sizes[weight.name] = patch.bytes(external=settings.external)
            if replaced:
                removed |= slot.removed
            else:
                sizes[weight.name] += slot.removed_bytes
            for tensor in patch.tensors:
                store.add(tensor)
                tensors[tensor.name] = weight.name
            for place, placed in patch.nodes.items():
                nodes.setdefault(place, []).extend(placed)
    if missing:
        raise BackendError(f"{next(iter(missing))}: this site got no weight.")
    _finish(skeleton.proto, nodes, removed, shared, settings)
    path = folder / MODEL_FILE
    path.write_bytes(skeleton.proto.SerializeToString(deterministic=True))
    files = (path, folder / DATA_FILE) if settings.external else (path,)
    return Written(files=files, site_bytes=sizes, tensors=tensors)


def _finish(
    proto: ModelProto, nodes: Mapping[int, list[NodeProto]], removed: set[int], shared: Shared, settings: Settings
) -> None:
    """Put nodes, constants and functions into the model."""
    proto.graph.initializer.extend(shared.constants.values())
    kept = [NodeProto.FromString(node.SerializeToString()) for node in proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes[LOADING])
    for index, node in enumerate(kept):
        proto.graph.node.extend(nodes.get(index, []) if index in removed else [node])
    functions = library(
        shared.functions,
        opset=settings.opset,
        element_type=settings.element_type,
        accuracy_level=settings.accuracy_level,
    )
    proto.functions.extend(functions)
    known = {entry.domain for entry in proto.opset_import}
    used = {node.domain for holder in (proto.graph, *functions) for node in holder.node}
    proto.opset_import.extend(
        helper.make_opsetid(domain, 1) for domain in (DOMAIN, RUNTIME_DOMAIN) if domain in used - known
    )
    if functions:
        proto.ir_version = max(proto.ir_version, FUNCTIONS_IR_VERSION)
    if settings.style == "qdq":
        proto.ir_version = max(proto.ir_version, SMALL_INTEGERS_IR_VERSION)
    _drop_idle_shapes(proto)


def _drop_idle_shapes(proto: ModelProto) -> None:
    """Drop the stated shapes of values that are no more."""
    made = {name for node in proto.graph.node for name in node.output}
    for index in reversed(range(len(proto.graph.value_info))):
        if proto.graph.value_info[index].name not in made:
            del proto.graph.value_info[index]


@final
class _Nowhere:
    """Stands for the data file of a model that has none."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


@final
class _Store:
    """Puts tensors into the model, or their values into the data file."""

    def __init__(self, proto: ModelProto, stream: IO[bytes] | None) -> None:
        self._proto = proto
        self._stream = stream

    def move_initializers(self) -> None:
        """Move what the skeleton holds to the data file, if there is one."""
        for tensor in self._proto.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if self._stream is not None and values.nbytes >= INLINE_BYTES:
                header = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
                self._write(header, values)
                tensor.CopyFrom(header)

    def add(self, tensor: StoredTensor) -> None:
        """Make the values of a tensor, and store them."""
        values = np.ascontiguousarray(tensor.data())
        assert values.dtype == tensor.dtype and values.shape == tensor.shape, f"{tensor.name}: {values.shape}"
        header = tensor.header()
        if self._stream is not None and tensor.payload_bytes >= INLINE_BYTES:
            self._write(header, values)
        else:
            header.raw_data = stored_values(values)
        self._proto.graph.initializer.append(header)

    def _write(self, header: TensorProto, values: Any) -> None:
        assert self._stream is not None
        self._stream.write(b"\0" * (-self._stream.tell() % EXTERNAL_ALIGNMENT))
        content = stored_values(values)
        refer_to_data_file(header, self._stream.tell(), len(content))
        self._stream.write(content)
