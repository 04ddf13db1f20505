"""The inputs of an ONNX graph: which of their axes counts the samples, and how many samples it takes at once.

An ONNX file does not say what a batch is. The first input's first axis is taken for the samples; another input has them
in its first axis too, or in an axis of the same name (the state `[2, batch, 128]` of a recurrent model), or nowhere (a
sampling rate). A first axis whose size the file fixes is a batch of that size.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ValueInfoProto

from guidedq.errors import ModelError
from guidedq.frontend.onnx_types import declared_type
from guidedq.ir.model import InputSpec
from guidedq.ir.onnx_interpreter.tensors import dtype_of

NAMELESS = ("", "?")
"""What exporters write for the name of a free axis that has none."""


def input_specs(inputs: Sequence[ValueInfoProto]) -> tuple[InputSpec, ...]:
    """One for each input, in order.

    Raises:
        ModelError: an input declares no tensor type and rank, or an axis of length zero; or none has an axis.
        UnsupportedOperatorError: torch has no such element type.
    """
    shapes = {entry.name: _shape(entry) for entry in inputs}
    first = next((entry for entry in inputs if shapes[entry.name]), None)
    if first is None:
        raise ModelError("no input of the model has an axis for its samples: there is nothing that data could vary.")
    batch, name = shapes[first.name][0], _names(first)[0]
    return tuple(_spec(entry, shapes[entry.name], _sample_axis(entry, shapes[entry.name], batch, name), batch)
                 for entry in inputs)  # fmt: skip


def _spec(entry: ValueInfoProto, shape: tuple[int | None, ...], axis: int | None, batch: int | None) -> InputSpec:
    rest = shape if axis is None else shape[:axis] + shape[axis + 1 :]
    dtype = dtype_of(entry.type.tensor_type.elem_type)
    return InputSpec(name=entry.name, dtype=dtype, shape=(None, *rest), sample_axis=axis, batch=batch)


def _shape(entry: ValueInfoProto) -> tuple[int | None, ...]:
    """The sizes, `None` for a free one, which some exporters write as -1."""
    kind = declared_type(entry)
    if not kind.element or kind.shape is None:
        raise ModelError(
            f"the input {entry.name!r} declares no tensor type and rank. Export the model again with both."
        )
    if 0 in kind.shape:
        raise ModelError(
            f"the input {entry.name!r} has the shape {list(kind.shape)}: with an axis of length zero it holds nothing. "
            "Export the model again, with that axis free or of its real length."
        )
    return tuple(None if size is None or size < 0 else size for size in kind.shape)


def _names(entry: ValueInfoProto) -> tuple[str, ...]:
    return tuple(size.dim_param for size in entry.type.tensor_type.shape.dim)


def _sample_axis(entry: ValueInfoProto, shape: tuple[int | None, ...], batch: int | None, name: str) -> int | None:
    """The axis of the samples, given size and name of the first input's."""
    names = _names(entry)
    if batch is None and name not in NAMELESS and name in names:
        return names.index(name)
    if shape and shape[0] == batch:
        return 0
    nameless = all(other in NAMELESS for other in names) or name in NAMELESS
    return shape.index(batch) if batch in shape and nameless else None
