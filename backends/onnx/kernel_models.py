"""The smallest models that run one kernel of ONNX Runtime, to be timed; weights and activations are random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from onnx import ModelProto, NodeProto, helper
from onnx.numpy_helper import from_array

from guidedq.artifacts.profile import Kernel, parsed_operator
from guidedq.errors import ProfileError

from .layout import BYTE_BITS
from .unpacking import RUNTIME_DOMAIN

OPSET = 21
IR_VERSION = 10
TABLE_ROWS = 4096
"""Of a look-up table: more than a core's caches hold of wide rows, as in a model."""
Feeds = Mapping[str, np.ndarray]


def kernel_model(kernel: Kernel) -> tuple[ModelProto, Feeds]:
    """A model that runs this kernel, and what it is fed.

    Raises:
        ProfileError: there is no such operator.
    """
    name, options = parsed_operator(kernel.operator)
    if name not in _WRITERS:
        raise ProfileError(f"no kernel {kernel.operator!r} of ONNX Runtime can be measured.")
    draft = _Draft(kernel)
    _WRITERS[name](draft, kernel, **options)
    return draft.model(), draft.feeds


@final
class _Draft:
    """A graph in the making."""

    def __init__(self, kernel: Kernel) -> None:
        self.feeds: dict[str, np.ndarray] = {}
        self._random = np.random.default_rng(kernel.work)
        self._nodes: list[NodeProto] = []
        self._stored: list[Any] = []

    def given(self, values: np.ndarray) -> str:
        """An input of the model."""
        name = f"x{len(self.feeds)}"
        self.feeds[name] = values
        return name

    def stored(self, values: np.ndarray) -> str:
        """A tensor of the model."""
        name = f"w{len(self._stored)}"
        self._stored.append(from_array(values, name))
        return name

    def node(self, operator: str, inputs: Sequence[str], results: int = 1, **options: Any) -> str:
        """An operator; its first result."""
        names = [f"y{len(self._nodes)}.{result}" for result in range(results)]
        self._nodes.append(helper.make_node(operator, inputs, names, **options))
        return names[0]

    def floats(self, *shape: int) -> np.ndarray:
        """Values around 0."""
        return self._random.normal(size=shape).astype(np.float32)

    def codes(self, *shape: int, dtype: Any = np.uint8) -> np.ndarray:
        """Codes, or bytes of packed ones; small enough for processors that add in 16 bits."""
        return self._random.integers(0, 64, shape).astype(dtype)

    def scale(self, *shape: int) -> str:
        """Scales."""
        return self.stored(np.full(shape, 0.01, dtype=np.float32))

    def zero(self, *shape: int, dtype: Any = np.uint8) -> str:
        """Zero points."""
        return self.stored(np.zeros(shape, dtype=dtype))

    def model(self) -> ModelProto:
        """The model; its output is what the last node makes."""
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)
            for name, values in self.feeds.items()
        ]
        output = helper.make_empty_tensor_value_info(self._nodes[-1].output[0])
        graph = helper.make_graph(self._nodes, "kernel", inputs, [output], self._stored)
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(RUNTIME_DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)


def _product(draft: _Draft, kernel: Kernel) -> None:
    left = draft.given(draft.floats(1, kernel.tokens, kernel.columns))
    draft.node("MatMul", [left, draft.stored(draft.floats(kernel.columns, kernel.rows))])


def _packed_product(draft: _Draft, kernel: Kernel, **options: int) -> None:
    _packed(draft, kernel, draft.given(draft.floats(1, kernel.tokens, kernel.columns)), kernel.rows, **options)


def _mixed_product(draft: _Draft, kernel: Kernel, **options: int) -> None:
    """Rows of two formats, as they are written: a product for each, joined and put in order."""
    left = draft.given(draft.floats(1, kernel.tokens, kernel.columns))
    first = kernel.rows // 2
    parts = [_packed(draft, kernel, left, rows, **options) for rows in (first, kernel.rows - first) if rows]
    joined = draft.node("Concat", parts, axis=-1)
    order = np.random.default_rng(0).permutation(kernel.rows)
    draft.node("Gather", [joined, draft.stored(order.astype(np.int64))], axis=-1)


def _packed(draft: _Draft, kernel: Kernel, left: str, rows: int, **options: int) -> str:
    bits, block = options["bits"], options["block_size"]
    blocks = -(-kernel.columns // block)
    codes = draft.stored(draft.codes(rows, blocks, block * bits // BYTE_BITS))
    zeros = draft.stored(draft.codes(rows, -(-blocks * bits // BYTE_BITS)))
    sizes = {"K": kernel.columns, "N": rows}
    return draft.node(
        "MatMulNBits", [left, codes, draft.scale(rows, blocks), zeros], domain=RUNTIME_DOMAIN, **sizes, **options
    )


def _integer_product(draft: _Draft, kernel: Kernel) -> None:
    left, scale, zero = draft.given(draft.codes(1, kernel.tokens, kernel.columns)), draft.scale(), draft.zero()
    codes = draft.stored(draft.codes(kernel.columns, kernel.rows, dtype=np.int8))
    scales, zeros = draft.scale(kernel.rows), draft.zero(kernel.rows, dtype=np.int8)
    draft.node("MatMulIntegerToFloat", [left, codes, scale, scales, zero, zeros], domain=RUNTIME_DOMAIN)


def _rounding(draft: _Draft, kernel: Kernel) -> None:
    value = draft.given(draft.floats(1, kernel.tokens, kernel.columns))
    draft.node("QuantizeLinear", [value, draft.scale(), draft.zero()])


def _dynamic_rounding(draft: _Draft, kernel: Kernel) -> None:
    draft.node("DynamicQuantizeLinear", [draft.given(draft.floats(1, kernel.tokens, kernel.columns))], results=3)


def _convolution(draft: _Draft, kernel: Kernel) -> None:
    shape, weight, options = _window(kernel)
    draft.node("Conv", [draft.given(draft.floats(*shape)), draft.stored(draft.floats(*weight))], **options)


def _integer_convolution(draft: _Draft, kernel: Kernel) -> None:
    shape, weight, options = _window(kernel)
    value, scale, zero = draft.given(draft.codes(*shape)), draft.scale(), draft.zero()
    codes = draft.stored(draft.codes(*weight, dtype=np.int8))
    by_row = draft.scale(kernel.rows), draft.zero(kernel.rows, dtype=np.int8)
    draft.node("QLinearConv", [value, scale, zero, codes, *by_row, scale, zero], **options)


def _window(kernel: Kernel) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Shapes of a convolution's input and weight, and its options: padded by half a kernel."""
    height, width, *kernel_shape, down, across, groups = kernel.window
    channels = kernel.columns // (kernel_shape[0] * kernel_shape[1])
    pads = [size // 2 for size in kernel_shape]
    options: dict[str, Any] = {"pads": pads * 2, "strides": [down, across], "group": groups}
    return (1, channels * groups, height, width), (kernel.rows, channels, *kernel_shape), options


def _look_up(draft: _Draft, kernel: Kernel) -> None:
    draft.node("Gather", [draft.stored(draft.floats(TABLE_ROWS, kernel.columns)), _places(draft, kernel)])


def _packed_look_up(draft: _Draft, kernel: Kernel, bits: int, block_size: int) -> None:
    groups = -(-kernel.columns // block_size)
    data = draft.stored(draft.codes(TABLE_ROWS, -(-kernel.columns * bits // BYTE_BITS)))
    scales = draft.scale(TABLE_ROWS, groups)
    zeros = draft.stored(draft.codes(TABLE_ROWS, -(-groups * bits // BYTE_BITS)))
    options = {"bits": bits, "block_size": block_size, "gather_axis": 0, "quantize_axis": 1}
    inputs = [data, _places(draft, kernel), scales, zeros]
    draft.node("GatherBlockQuantized", inputs, domain=RUNTIME_DOMAIN, **options)


def _places(draft: _Draft, kernel: Kernel) -> str:
    return draft.given(np.random.default_rng(0).integers(0, TABLE_ROWS, kernel.tokens).astype(np.int64))


_WRITERS: Mapping[str, Any] = {
    "MatMul": _product,
    "MatMulNBits": _packed_product,
    "MixedMatMulNBits": _mixed_product,
    "MatMulIntegerToFloat": _integer_product,
    "QuantizeLinear": _rounding,
    "DynamicQuantizeLinear": _dynamic_rounding,
    "Conv": _convolution,
    "QLinearConv": _integer_convolution,
    "Gather": _look_up,
    "GatherBlockQuantized": _packed_look_up,
}
