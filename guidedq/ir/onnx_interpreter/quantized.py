"""Models that are quantized already: codes are kept as numbers, and gradients pass through their rounding.

Rounding has no gradient. As in training for quantization (Bengio et al. 2013, arXiv 1308.3432) it is taken for the
identity where the code is in range, so that weights before it are guided as if it were not there. Codes that a gradient
passes through are therefore held as floats with whole values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from onnx import TensorProto
from torch import Tensor

from guidedq.ir.onnx_interpreter.neural import convolution
from guidedq.ir.onnx_interpreter.node import Node
from guidedq.ir.onnx_interpreter.tensors import dtype_of

RANGES: Mapping[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT2: (0, 3),
    TensorProto.INT2: (-2, 1),
}
"""Smallest and largest code of each element type."""
OF_DTYPE = {
    torch.uint8: TensorProto.UINT8,
    torch.int8: TensorProto.INT8,
    torch.int16: TensorProto.INT16,
    torch.int64: TensorProto.UINT16,
}
"""The element type that a zero point's dtype tells; uint16 is held in int64."""


def dequantize(node: Node, codes: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """`(codes - zero point) scale`, per tensor, per slice of an axis, or per block along it."""
    centred = codes.to(scale.dtype)
    if zero_point is not None:
        centred = centred - _spread(node, zero_point, codes).to(scale.dtype)
    return centred * _spread(node, scale, codes)


def quantize(node: Node, values: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """`round(values / scale) + zero point`, bounded by the type of the codes."""
    zero = torch.zeros(()) if zero_point is None else _spread(node, zero_point, values)
    usual = TensorProto.UINT8 if zero_point is None else OF_DTYPE[zero_point.dtype]
    return _rounded(values / _spread(node, scale, values), zero, node.integer("output_dtype", 0) or usual)


def dynamic_quantize(_node: Node, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of 8 bits for the range that the values themselves have, zero included; scale and zero point."""
    low, high = values.amin().clamp(max=0), values.amax().clamp(min=0)
    scale = ((high - low) / 255).detach()
    zero = torch.round(-low / torch.where(scale > 0, scale, 1.0)).clamp(0, 255).detach()
    codes = _rounded(values / torch.where(scale > 0, scale, 1.0), zero, TensorProto.UINT8)
    return codes, scale, zero.to(torch.uint8)


def integer_product(
    _node: Node, left: Tensor, right: Tensor, left_zero: Tensor | None = None, right_zero: Tensor | None = None
) -> Tensor:
    """Product of matrices of codes; in float32, which is exact up to 2^24."""
    rows = left_zero.unsqueeze(-1) if left_zero is not None and left_zero.ndim == 1 else left_zero
    return _whole(_centred(left, rows) @ _centred(right, right_zero))


def integer_convolution(
    node: Node, values: Tensor, weight: Tensor, zero: Tensor | None = None, weight_zero: Tensor | None = None
) -> Tensor:
    """Convolution of codes."""
    offset = None if weight_zero is None else _along_channels(weight_zero, weight)
    return _whole(convolution(node, _centred(values, zero), _centred(weight, offset)))


def quantized_product(
    node: Node,
    left: Tensor,
    left_scale: Tensor,
    left_zero: Tensor,
    right: Tensor,
    right_scale: Tensor,
    right_zero: Tensor,
    scale: Tensor,
    zero: Tensor,
) -> Tensor:
    """Product of matrices of codes, as codes."""
    rows = (left_scale.unsqueeze(-1), left_zero.unsqueeze(-1)) if left_scale.ndim == 1 else (left_scale, left_zero)
    product = (_centred(left, rows[1]) * rows[0]) @ (_centred(right, right_zero) * right_scale)
    return _rounded(product / scale, zero, OF_DTYPE[zero.dtype])


def quantized_convolution(
    node: Node,
    values: Tensor,
    scale: Tensor,
    zero: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor,
    output_scale: Tensor,
    output_zero: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Convolution of codes, as codes; the bias counts in the product of the two scales."""
    real = _centred(weight, _along_channels(weight_zero, weight)) * _along_channels(weight_scale, weight)
    offset = None if bias is None else bias * scale * weight_scale
    result = convolution(node, _centred(values, zero) * scale, real, offset)
    return _rounded(result / output_scale, output_zero, OF_DTYPE[output_zero.dtype])


def _rounded(values: Tensor, zero: Tensor, element_type: int) -> Tensor:
    """Codes; where a gradient passes, floats with the gradient of the values that are in range."""
    bounds = RANGES[element_type]
    codes = (torch.round(values) + zero).clamp(*bounds)
    if not values.requires_grad:
        return codes.to(dtype_of(element_type))
    shifted = (values + zero).clamp(*bounds)
    return shifted + (codes - shifted).detach()


def _whole(values: Tensor) -> Tensor:
    """Sums of products of codes: int32, unless a gradient passes."""
    return values if values.requires_grad else values.to(torch.int32)


def _centred(codes: Tensor, zero: Tensor | None) -> Tensor:
    return codes.float() if zero is None else codes.float() - zero.float()


def _along_channels(values: Tensor, weight: Tensor) -> Tensor:
    """One value for each channel of a convolution's weight, or one for all."""
    return values.reshape(()) if values.numel() == 1 else values.reshape(-1, *[1] * (weight.ndim - 1))


def _spread(node: Node, values: Tensor, like: Tensor) -> Tensor:
    """Scales or zero points over what they are for."""
    axis, block_size = node.integer("axis", 1), node.integer("block_size", 0)
    if block_size:
        return values.repeat_interleave(block_size, dim=axis).narrow(axis, 0, like.shape[axis])
    if values.ndim == 1 and values.numel() > 1:
        return values.reshape([-1 if index == axis % like.ndim else 1 for index in range(like.ndim)])
    return values if values.ndim != 1 else values.reshape(())


OPERATORS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "ConvInteger": integer_convolution,
    "DequantizeLinear": dequantize,
    "DynamicQuantizeLinear": dynamic_quantize,
    "MatMulInteger": integer_product,
    "QLinearConv": quantized_convolution,
    "QLinearMatMul": quantized_product,
    "QuantizeLinear": quantize,
}
"""By operator type, in the domain of ONNX itself."""
