"""Activation functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from guidedq.ir.onnx_interpreter.arithmetic import binary, unary
from guidedq.ir.onnx_interpreter.node import Node

SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
"""The defaults that the operator's specification gives (Klambauer et al. 2017, rounded to float32)."""


def softmax(node: Node, values: Tensor) -> Tensor:
    """Softmax along an axis; before opset 13 over all axes from that one on."""
    return _along_axis(node, values, torch.softmax)


def log_softmax(node: Node, values: Tensor) -> Tensor:
    """Logarithm of the softmax."""
    return _along_axis(node, values, torch.log_softmax)


def hardmax(node: Node, values: Tensor) -> Tensor:
    """One at the first largest value along an axis, else zero."""

    def largest(flat: Tensor, axis: int) -> Tensor:
        places = flat.argmax(axis, keepdim=True)
        return torch.zeros_like(flat).scatter(axis, places, 1.0)

    return _along_axis(node, values, largest)


def gelu(node: Node, values: Tensor) -> Tensor:
    """Gaussian error linear unit, exact or by tanh."""
    return functional.gelu(values, approximate=node.text("approximate", "none"))


def hard_sigmoid(node: Node, values: Tensor) -> Tensor:
    """`alpha x + beta`, between 0 and 1."""
    return (values * node.number("alpha", 0.2) + node.number("beta", 0.5)).clamp(0, 1)


def elu(node: Node, values: Tensor) -> Tensor:
    """Exponential linear unit."""
    return functional.elu(values, alpha=node.number("alpha", 1.0))


def celu(node: Node, values: Tensor) -> Tensor:
    """Continuously differentiable exponential linear unit."""
    return functional.celu(values, alpha=node.number("alpha", 1.0))


def selu(node: Node, values: Tensor) -> Tensor:
    """Scaled exponential linear unit."""
    return functional.elu(values, alpha=node.number("alpha", SELU_ALPHA)) * node.number("gamma", SELU_GAMMA)


def leaky_relu(node: Node, values: Tensor) -> Tensor:
    """Rectifier with a slope for negative values."""
    return functional.leaky_relu(values, node.number("alpha", 0.01))


def thresholded_relu(node: Node, values: Tensor) -> Tensor:
    """The values above a threshold, else zero."""
    return torch.where(values > node.number("alpha", 1.0), values, torch.zeros_like(values))


def shrink(node: Node, values: Tensor) -> Tensor:
    """Values beyond `lambd`, moved toward zero by `bias`, else zero."""
    bound, bias = node.number("lambd", 0.5), node.number("bias", 0.0)
    outside = torch.where(values > bound, values - bias, torch.zeros_like(values))
    return torch.where(values < -bound, values + bias, outside)


def swish(node: Node, values: Tensor) -> Tensor:
    """`x sigmoid(alpha x)`."""
    return values * torch.sigmoid(values * node.number("alpha", 1.0))


def _along_axis(node: Node, values: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    if node.opset >= 13:
        return function(values, node.integer("axis", -1))
    axis = node.integer("axis", 1) % values.ndim
    return function(values.flatten(axis), axis).reshape(values.shape)


OPERATORS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "Celu": celu,
    "Elu": elu,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": unary(functional.hardswish),
    "Hardmax": hardmax,
    "LeakyRelu": leaky_relu,
    "LogSoftmax": log_softmax,
    "Mish": unary(functional.mish),
    "PRelu": binary(lambda values, slope: torch.where(values < 0, values * slope, values)),
    "Relu": unary(torch.relu),
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": unary(torch.sigmoid),
    "Softmax": softmax,
    "Softplus": unary(functional.softplus),
    "Softsign": unary(functional.softsign),
    "Swish": swish,
    "Tanh": unary(torch.tanh),
    "ThresholdedRelu": thresholded_relu,
}
"""By operator type, in the domain of ONNX itself."""
