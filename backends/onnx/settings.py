"""The settings under which one model is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from .unpacking import BITWISE_OPSET

Style = Literal["native", "qdq", "baked"]
"""How quantized weights stand in the file: unpacked at load, behind DequantizeLinear, or as the runtime holds them."""

INTEGER_LEVEL = 4
"""The accuracy level at which MatMulNBits rounds activations to int8 and computes in integers."""
Layout = Literal["plain", "genai"]
"""What lies in the folder: the model alone, or with a cache and all that ONNX Runtime GenAI needs to generate."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the writers of sites need to know besides the site.

    Attributes:
        accuracy_level: What MatMulNBits is asked for, 0 to 4.
        opset: Version of the model's standard operators.
        element_type: ONNX data type in which the quantized operators compute.
        external: Large tensors lie in a file of their own.
        style: How quantized weights stand in the file.
    """

    accuracy_level: int
    opset: int
    element_type: int
    external: bool
    style: Style = "native"

    @property
    def bitwise(self) -> bool:
        """Whether the opset has bitwise operators, so that codes can be unpacked straight into the container."""
        return self.opset >= BITWISE_OPSET

    @property
    def integer(self) -> bool:
        """Whether activations are rounded to int8."""
        return self.accuracy_level == INTEGER_LEVEL
