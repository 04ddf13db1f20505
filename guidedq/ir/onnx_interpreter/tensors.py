"""ONNX tensors as torch tensors, and ONNX's element types as torch dtypes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from guidedq.errors import ModelError, UnsupportedOperatorError

HALF_DTYPES = (torch.float16, torch.bfloat16)
"""Stored as they are, computed in float32."""

DTYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.int64,
    TensorProto.UINT32: torch.int64,
    TensorProto.UINT64: torch.int64,
    TensorProto.INT4: torch.int8,
    TensorProto.UINT4: torch.uint8,
    TensorProto.INT2: torch.int8,
    TensorProto.UINT2: torch.uint8,
}
"""The dtype that holds each element type. Unsigned types that torch computes poorly on are widened to int64."""

WIDER_THAN_THEIR_DTYPE = frozenset({TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2})
"""Types that torch does not have: fine to hold, not to cast to, since the cast would have to wrap around."""


def dtype_of(element_type: int) -> torch.dtype:
    """The dtype that stores an ONNX element type.

    Raises:
        UnsupportedOperatorError: torch has no such type (text, complex numbers, 8-bit floats).
    """
    if element_type not in DTYPES:
        name = (
            TensorProto.DataType.Name(element_type) if element_type in TensorProto.DataType.values() else element_type
        )
        raise UnsupportedOperatorError(f"tensors of type {name} cannot be run in torch.")
    return DTYPES[element_type]


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """What values of `dtype` are computed in: float32 for 16-bit floats, else the same."""
    return torch.float32 if dtype in HALF_DTYPES else dtype


def computed(values: Tensor) -> Tensor:
    """The values in the dtype that they are computed in."""
    return values.float() if values.dtype in HALF_DTYPES else values


def torch_tensor(proto: TensorProto) -> Tensor:
    """The tensor that an ONNX file stores, in `dtype_of` its element type, with memory of its own.

    Raises:
        ModelError: the data do not have the size that the shape asks for.
        UnsupportedOperatorError: torch has no such type.
    """
    dtype = dtype_of(proto.data_type)
    try:
        array = numpy_helper.to_array(proto)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"tensor {proto.name!r} is damaged: {error}. Export the model again.") from error
    if proto.data_type == TensorProto.BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).reshape(array.shape)
    target = torch.empty((), dtype=dtype).numpy().dtype if dtype is not torch.bfloat16 else array.dtype
    return torch.from_numpy(np.array(array, dtype=target, copy=True, order="C"))


def element_count(proto: onnx.TensorProto) -> int:
    """Number of values of a stored tensor, from its shape."""
    count = 1
    for size in proto.dims:
        count *= size
    return count
