"""Packed modules as custom operators of torch, so that `torch.compile` and `torch.export` see one node for each.

An operator takes the tensors that a `PackedWeight` or a `PlaneWeight` holds and, as constants, what else it knows (its
`operands`), so an exported program is complete: who runs it need only import this file. Eager modules do not come here.

The precision of a nested weight is such a constant: compiled code is traced anew for another, an exported program keeps
its own. Precisions by position are a tensor, which compiled code reads at each call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidedq.errors import ArtifactError
from guidedq.quant.nested import parse_nested
from guidedq.quant.packing import BlobLayout, read_layout

from .matrix import PackedMatrix
from .native.calls import describe

if TYPE_CHECKING:
    from .planes import PlaneWeight

WEIGHT = "Tensor blob, Tensor listed, Tensor places, Tensor dtype_anchor, str header, int rows, int columns"
"""The operands of every operator that stand for the weight, `[rows, columns]`; `header` is the blob's, in hex."""
NESTED = (
    "Tensor planes, Tensor scales, Tensor zero_points, Tensor dtype_anchor, Tensor ratios, Tensor shifts, "
    "Tensor? positions, int precision, str format, int rows, int columns"
)
"""The same of a nested weight; `positions`, if there are any, stand in place of `precision`."""


_LIBRARY = torch.library.Library("guidedq", "FRAGMENT")


def _operator(schema: str, allocate: Callable[..., Tensor]) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Define an operator by a function, as `torch.library.custom_op` does, whose operators take twice as long to call.

    Args:
        schema: Of the arguments and the result.
        allocate: Gives a tensor like the result, for tracing.
    """

    def define(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        name = function.__name__
        _LIBRARY.define(f"{name}{schema}", tags=torch.Tag.pt2_compliant_tag)
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"guidedq::{name}", allocate)
        return getattr(torch.ops.guidedq, name).default

    return define


@_operator(f"({WEIGHT}) -> Tensor", lambda *weight: weight[3].new_empty(weight[5], weight[6]))
def packed_matrix(*weight: Any) -> Tensor:
    """The weight as a matrix, `[rows, columns]`, in the dtype of `dtype_anchor`."""
    return _weight(*weight).dequantize()


@_operator(f"(Tensor index, {WEIGHT}) -> Tensor", lambda index, *weight: weight[3].new_empty(index.shape[0], weight[6]))
def packed_rows(index: Tensor, *weight: Any) -> Tensor:
    """Some rows of the matrix, `[n, columns]`, by their numbers, int64 `[n]`."""
    return _weight(*weight).rows(index)


@_operator(
    f"(Tensor values, Tensor? bias, {WEIGHT}) -> Tensor",
    lambda values, _, *weight: values.new_empty(*values.shape[:-1], weight[5]),
)
def packed_linear(values: Tensor, bias: Tensor | None, *weight: Any) -> Tensor:
    """`values`, `[..., columns]`, times the transposed matrix, plus the bias: `[..., rows]`."""
    outputs = _weight(*weight).multiply(values)
    return outputs if bias is None else outputs.add_(bias)


@_operator(f"({NESTED}) -> Tensor", lambda *weight: weight[3].new_empty(weight[9], weight[10]))
def nested_matrix(*weight: Any) -> Tensor:
    """A nested weight as a matrix, `[rows, columns]`, in the dtype of `dtype_anchor`; there are no `positions`."""
    return _nested(*weight)()


@_operator(f"(Tensor index, {NESTED}) -> Tensor", lambda index, *weight: weight[3].new_empty(*index.shape, weight[10]))
def nested_rows(index: Tensor, *weight: Any) -> Tensor:
    """Some rows of the matrix, `[..., columns]`, by their numbers, int64 `[...]`."""
    return _nested(*weight).rows(index)


@_operator(
    f"(Tensor values, Tensor? bias, {NESTED}) -> Tensor",
    lambda values, _, *weight: values.new_empty(*values.shape[:-1], weight[9]),
)
def nested_linear(values: Tensor, bias: Tensor | None, *weight: Any) -> Tensor:
    """`values`, `[..., columns]`, times the transposed matrix, plus the bias: `[..., rows]`."""
    from .modules import PackedLinear

    return PackedLinear(_nested(*weight), bias)(values)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """For the gradient: all of the weight."""
    del output
    _, bias, *weight = inputs
    ctx.held = [None if isinstance(operand, Tensor) else operand for operand in weight]
    ctx.save_for_backward(*(operand if isinstance(operand, Tensor) else None for operand in weight))
    ctx.biased = bias is not None


def _pull_back(matrix: Callable[..., Tensor]) -> Callable[..., tuple[Tensor | None, ...]]:
    """The gradient of a linear operator, whose `matrix` is multiplied by what comes back."""

    def pull_back(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors = zip(context.saved_tensors, context.held, strict=True)
        weight = [held if tensor is None else tensor for tensor, held in tensors]
        outer = tuple(range(gradient.dim() - 1))
        of_bias = gradient.sum(outer) if context.biased and context.needs_input_grad[1] else None
        return gradient @ matrix(*weight), of_bias, *(None for _ in weight)

    return pull_back


def _whole_matrix(*weight: Any) -> Tensor:
    if weight[6] is not None:
        raise ArtifactError("no gradient passes a compiled layer whose precision differs by position. Set one for all.")
    return nested_matrix(*weight)


torch.library.register_autograd("guidedq::packed_linear", _pull_back(packed_matrix), setup_context=_keep)
torch.library.register_autograd("guidedq::nested_linear", _pull_back(_whole_matrix), setup_context=_keep)


def _weight(
    blob: Tensor, listed: Tensor, places: Tensor, dtype_anchor: Tensor, header: str, rows: int, columns: int
) -> PackedMatrix:
    layout, description = _layout(header, len(blob), rows, columns)
    return PackedMatrix(
        layout=layout,
        description=description,
        blob=blob,
        listed=listed,
        places=places,
        dtype=dtype_anchor.dtype,
    )


@cache
def _layout(header: str, length: int, rows: int, columns: int) -> tuple[BlobLayout, bytes]:
    """A blob's layout, and the same for the kernels.

    There are as many as layers differ, and reading one takes as long as multiplying by a small matrix.
    """
    head = torch.tensor(list(bytes.fromhex(header)), dtype=torch.uint8)
    blob = torch.zeros(length, dtype=torch.uint8)
    blob[: len(head)] = head
    layout = read_layout(blob, "a packed weight", (rows, columns))
    return layout, describe(layout, length)


def _nested(
    planes: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    dtype_anchor: Tensor,
    ratios: Tensor,
    shifts: Tensor,
    positions: Tensor | None,
    precision: int,
    format: str,
    rows: int,
    columns: int,
) -> PlaneWeight:
    from .planes import PlaneWeight

    read = parse_nested(format)
    assert read is not None, "the operand is a nested format's text"
    tensors = {"planes": planes, "scales": scales, "zero_points": zero_points, "ratios": ratios, "shifts": shifts}
    weight = PlaneWeight.around(tensors, dtype_anchor, read, (rows, columns))
    weight.read_at(precision if positions is None else positions)
    return weight
