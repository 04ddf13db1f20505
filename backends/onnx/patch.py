"""What is put into a graph, counted to the byte before any of it has data.

A `Patch` collects the tensors and nodes of one site. The same code fills it when bytes are counted (no data yet) and
when the file is written, so the two cannot disagree. Its new names all have one length, so that the count does not
depend on the order of the sites.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any, final

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from guidedq.errors import BackendError

from .layout import BYTE_BITS, container_bytes
from .unpacking import DOMAIN

INLINE_BYTES = 1024
"""Smaller tensors stay in the model's own file even when the large ones are stored beside it."""
EXTERNAL_ALIGNMENT = 64
"""Tensors in the data file start at multiples of a cache line."""
DATA_FILE = "model.onnx.data"
LARGEST_OFFSET = 10**13
"""Offsets are counted as if they had the digits of this one."""
LOADING = -1
"""The place of nodes that depend on stored tensors only: before all others, folded while the model is loaded."""
Step = tuple[str, list[str], dict[str, Any]]
"""An operator that a value goes through: its name, its further inputs, and its attributes."""
SMALL_BITS = {"uint4": 4, "int4": 4, "uint2": 2, "int2": 2}
"""Bits of the integers that share bytes, by the name of their type."""
_INITIAL = string.ascii_letters
_FURTHER = string.ascii_letters + string.digits


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor to be stored.

    Attributes:
        name: In the graph.
        dtype: Of its values.
        shape: Of its values.
        data: Makes the values; called once, when they are written.
        per_row: Its size grows with the rows that are stored; else it belongs to what a segment takes anyway.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    data: Callable[[], np.ndarray]
    per_row: bool = True

    @property
    def payload_bytes(self) -> int:
        """Bytes of the values; integers of less than a byte are packed."""
        return -(-int(np.prod(self.shape, dtype=np.int64)) * bits_of(self.dtype) // BYTE_BITS)

    @property
    def data_type(self) -> int:
        """The ONNX data type."""
        return helper.np_dtype_to_tensor_dtype(self.dtype)

    def header(self) -> TensorProto:
        """The tensor without its values."""
        return TensorProto(name=self.name, data_type=self.data_type, dims=self.shape)

    def bytes(self, *, external: bool) -> int:
        """Bytes that the tensor adds to the file, or files."""
        header = self.header()
        if external and self.payload_bytes >= INLINE_BYTES:
            refer_to_data_file(header, LARGEST_OFFSET, self.payload_bytes)
            return field_bytes(header.ByteSize()) + self.payload_bytes + EXTERNAL_ALIGNMENT - 1
        return field_bytes(header.ByteSize() + field_bytes(self.payload_bytes))


@final
@dataclass(slots=True, kw_only=True)
class Shared:
    """What all patches of one model share: new names, constants, and the functions that are called.

    Attributes:
        names: Yields new names, all of one length.
        constants: Tensors used at many sites, by dtype, shape and value.
        functions: Names of the functions called so far.
    """

    names: Iterator[str]
    constants: dict[tuple[str, tuple[int, ...], bytes], TensorProto] = field(
        default_factory=dict[tuple[str, tuple[int, ...], bytes], TensorProto]
    )
    functions: set[str] = field(default_factory=set[str])

    def constant(self, values: np.ndarray) -> str:
        """The name of a stored constant with these values."""
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(values, next(self.names))
        return self.constants[key].name


@final
@dataclass(slots=True, kw_only=True)
class Patch:
    """Tensors and nodes of one site, in the order in which they are added.

    Attributes:
        shared: What it shares with the patches of other sites.
        tensors: To be stored.
        nodes: By place: at the graph's beginning (`LOADING`), or where the node of that index was.
    """

    shared: Shared
    tensors: list[StoredTensor] = field(default_factory=list[StoredTensor])
    nodes: dict[int, list[NodeProto]] = field(default_factory=dict[int, list[NodeProto]])

    def store(
        self,
        dtype: Any,
        shape: Iterable[int],
        data: Callable[[], np.ndarray],
        name: str | None = None,
        *,
        per_row: bool = True,
    ) -> str:
        """Add a tensor, and give its name."""
        fresh = name or next(self.shared.names)
        tensor = StoredTensor(name=fresh, dtype=np.dtype(dtype), shape=tuple(shape), data=data, per_row=per_row)
        self.tensors.append(tensor)
        return fresh

    def node(
        self, operator: str, inputs: Iterable[str], output: str | None = None, at: int = LOADING, **options: Any
    ) -> str:
        """Add a node with one output, and give the output's name."""
        name = output or next(self.shared.names)
        node = helper.make_node(operator, list(inputs), [name], **options)
        self.nodes.setdefault(at, []).append(node)
        return name

    def chain(self, value: str, steps: Iterable[Step], output: str) -> str:
        """Add nodes that a value goes through one after another, the last giving `output`, and give its name."""
        steps = list(steps)
        for left, (operator, inputs, options) in enumerate(steps, 1 - len(steps)):
            value = self.node(operator, [value, *inputs], None if left else output, **options)
        return value

    def call(
        self, function: str, inputs: Iterable[str], output: str | None = None, at: int = LOADING, **options: Any
    ) -> str:
        """Add a call of a function of `unpacking.py` with one output, and give the output's name."""
        self.shared.functions.add(function)
        return self.node(function, inputs, output, at, domain=DOMAIN, **options)

    def call_for(self, outputs: int, function: str, inputs: Iterable[str], **options: Any) -> list[str]:
        """Add a call with several outputs at the graph's beginning, and give their names."""
        self.shared.functions.add(function)
        names = [next(self.shared.names) for _ in range(outputs)]
        node = helper.make_node(function, list(inputs), names, domain=DOMAIN, **options)
        self.nodes.setdefault(LOADING, []).append(node)
        return names

    def constant(self, values: np.ndarray) -> str:
        """The name of a constant that all sites share."""
        return self.shared.constant(values)

    def integers(self, *values: int) -> str:
        """The name of a shared list of sizes or axes."""
        return self.shared.constant(np.array(values, dtype=np.int64))

    def bytes(self, *, external: bool) -> int:
        """Bytes that the patch adds, besides shared constants and functions."""
        tensors = sum(tensor.bytes(external=external) for tensor in self.tensors)
        return tensors + sum(node_bytes(node) for nodes in self.nodes.values() for node in nodes)

    @property
    def payload_bytes(self) -> int:
        """Bytes of the values that grow with the rows."""
        return sum(tensor.payload_bytes for tensor in self.tensors if tensor.per_row)


def bits_of(dtype: np.dtype[Any]) -> int:
    """Bits that a value takes in the file."""
    return SMALL_BITS.get(dtype.name, BYTE_BITS * dtype.itemsize)


def stored_values(values: np.ndarray) -> bytes:
    """The values as they lie in the file: integers of less than a byte packed, the first lowest."""
    bits = SMALL_BITS.get(values.dtype.name)
    if bits is None:
        return values.tobytes()
    low = values.astype(np.int8).view(np.uint8) & np.uint8(2**bits - 1)
    return container_bytes(low.reshape(1, -1), bits).tobytes()


def name_length(needed: int, taken: Collection[str]) -> int:
    """The least length at which there are `needed` names besides those `taken`."""
    length = 1
    while len(_INITIAL) * len(_FURTHER) ** (length - 1) - len(taken) < needed:
        length += 1
    return length


def names_of_length(length: int, taken: Collection[str]) -> Iterator[str]:
    """New names of this length, besides those `taken`.

    Raises:
        BackendError: there are no more.
    """
    for first, *rest in product(_INITIAL, *[_FURTHER] * (length - 1)):
        name = first + "".join(rest)
        if name not in taken:
            yield name
    raise BackendError(f"the graph needs more names of {length} letters than there are.")


def refer_to_data_file(tensor: TensorProto, offset: int, length: int) -> None:
    """Make a tensor say that its values lie in the data file."""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA_FILE), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def field_bytes(length: int) -> int:
    """Bytes of a protobuf field (numbered below 16) of `length` bytes: its tag, its length and itself."""
    return 1 + max(1, -(-length.bit_length() // 7)) + length


def node_bytes(node: NodeProto) -> int:
    """Bytes that a node adds to its graph."""
    return field_bytes(node.ByteSize())
