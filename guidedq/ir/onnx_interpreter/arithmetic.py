"""Arithmetic and comparisons, element by element, and products of matrices."""

from __future__ import annotations

import operator as python_operator
from collections.abc import Callable, Mapping
from functools import reduce

import torch
from torch import Tensor

from guidedq.ir.onnx_interpreter.node import Node
from guidedq.ir.onnx_interpreter.tensors import computing_dtype, dtype_of


def unary(function: Callable[[Tensor], Tensor]) -> Callable[[Node, Tensor], Tensor]:
    """An operator of one tensor and no attributes."""
    return lambda _node, values: function(values)


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node, Tensor, Tensor], Tensor]:
    """An operator of two tensors that broadcast, with no attributes."""
    return lambda _node, left, right: function(left, right)


def variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """An operator that folds any number of tensors that broadcast."""
    return lambda _node, *values: reduce(function, values)


def divide(_node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Quotient; of integers, rounded toward zero."""
    return left / right if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


def modulo(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Remainder with the sign of the divisor, or of the dividend with `fmod`."""
    return torch.fmod(left, right) if node.integer("fmod", 0) else torch.remainder(left, right)


def power(_node: Node, base: Tensor, exponent: Tensor) -> Tensor:
    """Power in the base's dtype."""
    if exponent.ndim == 0 and base.is_floating_point():
        return torch.pow(base, exponent.item())
    return torch.pow(base, exponent).to(base.dtype)


def mean(_node: Node, *values: Tensor) -> Tensor:
    """Mean of tensors that broadcast."""
    return reduce(torch.add, values) / len(values)


def clip(node: Node, values: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Values between `low` and `high`; where these cross, `high` wins."""
    bottom = low if low is not None else node.attributes.get("min")
    top = high if high is not None else node.attributes.get("max")
    if bottom is not None:
        values = torch.clamp(values, min=bottom)
    return values if top is None else torch.clamp(values, max=top)


def cast(node: Node, values: Tensor) -> Tensor:
    """Another dtype; 16-bit floats stay in float32, unrounded."""
    return values.to(computing_dtype(dtype_of(node.integer("to", 1))))


def cast_like(_node: Node, values: Tensor, like: Tensor) -> Tensor:
    """The dtype of another tensor."""
    return values.to(like.dtype)


def is_infinite(node: Node, values: Tensor) -> Tensor:
    """Where values are infinite, of the signs asked for."""
    positive = torch.isposinf(values) & bool(node.integer("detect_positive", 1))
    return positive | (torch.isneginf(values) & bool(node.integer("detect_negative", 1)))


def bit_shift(node: Node, values: Tensor, amounts: Tensor) -> Tensor:
    """Bits moved in the stated direction."""
    left = node.text("direction", "LEFT") == "LEFT"
    return torch.bitwise_left_shift(values, amounts) if left else torch.bitwise_right_shift(values, amounts)


def gemm(node: Node, left: Tensor, right: Tensor, offset: Tensor | None = None) -> Tensor:
    """`alpha left right + beta offset`, each factor transposed if asked."""
    left = left.t() if node.integer("transA", 0) else left
    right = right.t() if node.integer("transB", 0) else right
    product = left @ right * node.number("alpha", 1.0)
    return product if offset is None else product + offset * node.number("beta", 1.0)


def einsum(node: Node, *values: Tensor) -> Tensor:
    """Sums of products by index letters."""
    return torch.einsum(node.text("equation", "").replace(" ", ""), *values)


def identity(_node: Node, values: Tensor) -> Tensor:
    """The same values."""
    return values


def dropout(_node: Node, values: Tensor, *_settings: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same values, since nothing is dropped outside training, and a mask that keeps all."""
    return values, torch.ones_like(values, dtype=torch.bool)


OPERATORS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "Abs": unary(torch.abs),
    "Acos": unary(torch.acos),
    "Acosh": unary(torch.acosh),
    "Add": binary(torch.add),
    "And": binary(torch.logical_and),
    "Asin": unary(torch.asin),
    "Asinh": unary(torch.asinh),
    "Atan": unary(torch.atan),
    "Atanh": unary(torch.atanh),
    "BitShift": bit_shift,
    "BitwiseAnd": binary(torch.bitwise_and),
    "BitwiseNot": unary(torch.bitwise_not),
    "BitwiseOr": binary(torch.bitwise_or),
    "BitwiseXor": binary(torch.bitwise_xor),
    "Cast": cast,
    "CastLike": cast_like,
    "Ceil": unary(torch.ceil),
    "Clip": clip,
    "Cos": unary(torch.cos),
    "Cosh": unary(torch.cosh),
    "Div": divide,
    "Dropout": dropout,
    "Einsum": einsum,
    "Equal": binary(torch.eq),
    "Erf": unary(torch.erf),
    "Exp": unary(torch.exp),
    "Floor": unary(torch.floor),
    "Gemm": gemm,
    "Greater": binary(torch.gt),
    "GreaterOrEqual": binary(torch.ge),
    "Identity": identity,
    "IsInf": is_infinite,
    "IsNaN": unary(torch.isnan),
    "Less": binary(torch.lt),
    "LessOrEqual": binary(torch.le),
    "Log": unary(torch.log),
    "MatMul": binary(torch.matmul),
    "Max": variadic(torch.maximum),
    "Mean": mean,
    "Min": variadic(torch.minimum),
    "Mod": modulo,
    "Mul": binary(torch.mul),
    "Neg": unary(torch.neg),
    "Not": unary(torch.logical_not),
    "Or": binary(torch.logical_or),
    "Pow": power,
    "Reciprocal": unary(torch.reciprocal),
    "Round": unary(torch.round),
    "Sign": unary(torch.sign),
    "Sin": unary(torch.sin),
    "Sinh": unary(torch.sinh),
    "Sqrt": unary(torch.sqrt),
    "Sub": binary(torch.sub),
    "Sum": variadic(python_operator.add),
    "Tan": unary(torch.tan),
    "Where": lambda _node, condition, left, right: torch.where(condition, left, right),
    "Xor": binary(torch.logical_xor),
}
"""By operator type, in the domain of ONNX itself."""
