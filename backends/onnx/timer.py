"""Which kernels of ONNX Runtime run which site, and how long they take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from guidedq.artifacts.activations import ActivationPlace
from guidedq.artifacts.footprint import Footprint
from guidedq.artifacts.profile import Kernel, Profile, SiteKernels, operator_text
from guidedq.errors import ProfileError
from guidedq.ir.feeding import fed
from guidedq.ir.graph import Use, UseKind
from guidedq.ir.model import Model
from guidedq.ir.onnx_interpreter import parse_model
from guidedq.ir.onnx_interpreter.node import Node, with_branches
from guidedq.ir.program import Batch
from guidedq.machine import processor_name
from guidedq.progress import Progress, tracked
from guidedq.quant.formats import AffineFormat, Format
from guidedq.timer import AbstractTimer

from .emission import MODEL_FILE
from .kernel_models import kernel_model
from .layout import LARGEST_GATHER_BLOCK
from .packed import smallest_block, uniform_container
from .settings import INTEGER_LEVEL, Settings
from .skeleton import Skeleton, Slot
from .source import read_source
from .stopwatch import call_seconds, kernel_seconds, runtime_name, session_of

INTEGER_KERNELS = {"MatMul": "MatMulIntegerToFloat", "Conv": "QLinearConv"}
"""What operators become on integers, by what they are on floats."""
CONTAINERS, BLOCKS = (2, 4, 8), (32, 64, 128)
"""Of MatMulNBits: what the recipes' formats come to."""
MIXED_CONTAINER, MIXED_BLOCK = 4, 64
"""Stand for all formats when it is asked what several in one site cost."""
PRODUCT_TOKENS = (1, 16, 128)
PRODUCT_SIZES = ((64, 64), (256, 256), (256, 1024), (1024, 256), (1024, 1024), (2048, 2048))
"""Inputs and outputs of layers, from tiny networks to language models of some hundred million weights."""
CONVOLUTIONS = (
    *((32, 16, 16, 3, 1, 1), (16, 32, 32, 3, 1, 1), (8, 64, 64, 3, 1, 1), (32, 32, 64, 3, 2, 1)),
    *((28, 128, 128, 3, 1, 1), (14, 256, 256, 3, 1, 1), (7, 512, 512, 3, 1, 1), (112, 3, 64, 7, 2, 1)),
    *((56, 64, 64, 1, 1, 1), (28, 128, 256, 1, 1, 1), (14, 256, 256, 1, 1, 1), (56, 64, 64, 3, 1, 64)),
)  # fmt: skip
"""Side of the image, channels, rows, side of the kernel, stride, groups: the layers of ResNets and MobileNets."""
LOOK_UPS = ((1, 384), (128, 384), (128, 1024))
"""Tokens, and values of each."""
PASSES = 3
"""Over all shapes; of each the one counts in which its kernels took least together: other work comes in bursts."""
RANKS = {3: 1, 4: 2}
"""Axes that a convolution slides along, by those of its weight."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxTimer(AbstractTimer):
    """Times kernels and models with ONNX Runtime.

    Attributes:
        slots: Gives a model's slots, the settings that they are written under, and the sites that may be computed in
            integers.
        accuracy_level: Of MatMulNBits.
    """

    slots: Callable[[Model], tuple[Skeleton, Settings, frozenset[str]]]
    accuracy_level: int = INTEGER_LEVEL

    def kernels(
        self, model: Model, footprint: Footprint, inputs: Mapping[str, Sequence[int]]
    ) -> Mapping[str, SiteKernels]:
        """See `AbstractTimer.kernels`.

        Transposed convolutions and recurrent layers have none: what they take is the rest of the model's.
        """
        skeleton, settings, integers = self.slots(model)
        nodes = {node.name: node for node in with_branches(parse_model(read_source(model.path)).nodes)}
        found: dict[str, SiteKernels] = {}
        for site in model.graph.quantizable:
            slot, formats = skeleton.slots[site.name], footprint.sites[site.name].formats
            original = tuple(
                kernel
                for use in site.uses
                if use.operator in inputs
                and (kernel := _original(slot, use, nodes.get(use.operator), inputs[use.operator])) is not None
            )
            packed = [self._packed(slot, format, original, settings) for format in formats]
            mixable = footprint.sites[site.name].segments > 1 and bool(slot.linear)
            found[site.name] = SiteKernels(
                original=original,
                formats=tuple(packed),
                integer=tuple(_as(kernel, INTEGER_KERNELS[kernel.operator]) for kernel in original)
                if site.name in integers
                else (),
                mixed=self._pair("MixedMatMulNBits", original) if mixable else (),
                plain=self._pair("MatMulNBits", original) if mixable else (),
            )
        return found

    def rounding(self, places: Sequence[ActivationPlace], inputs: Mapping[str, Sequence[int]]) -> Mapping[str, Kernel]:
        """See `AbstractTimer.rounding`. Between integer convolutions values stay integers: that takes none."""
        read = [place for place in places if place.operators and place.operators[0] in inputs]
        return {place.name: _rounding(inputs[place.operators[0]], dynamic=place.dynamic) for place in read}

    def alternatives(self, kernel: Kernel) -> Sequence[Kernel]:
        """See `AbstractTimer.alternatives`."""
        if kernel.operator == "Conv":
            return kernel, _as(kernel, INTEGER_KERNELS["Conv"])
        if kernel.operator == "Gather":
            blocks = [(bits, block) for bits in CONTAINERS for block in BLOCKS]
            return kernel, *(_as(kernel, "GatherBlockQuantized", bits=b, block_size=g) for b, g in blocks)
        packed = [self._product(kernel, bits, block) for bits in CONTAINERS for block in BLOCKS]
        mixed = self._product(kernel, MIXED_CONTAINER, MIXED_BLOCK, "MixedMatMulNBits")
        rounding = [_rounding((kernel.tokens, kernel.columns), dynamic=dynamic) for dynamic in (False, True)]
        return kernel, *packed, mixed, _as(kernel, INTEGER_KERNELS["MatMul"]), *rounding

    def grid(self) -> Sequence[Kernel]:
        """See `AbstractTimer.grid`."""
        products = [
            Kernel(operator="MatMul", tokens=tokens, columns=columns, rows=rows)
            for tokens in PRODUCT_TOKENS
            for columns, rows in PRODUCT_SIZES
        ]
        look_ups = [Kernel(operator="Gather", tokens=tokens, columns=columns, rows=1) for tokens, columns in LOOK_UPS]
        windows = [
            _convolution((side, side), channels // groups, rows, (kernel, kernel), (stride, stride), groups)
            for side, channels, rows, kernel, stride, groups in CONVOLUTIONS
        ]
        return [other for kernel in (*products, *windows, *look_ups) for other in self.alternatives(kernel)]

    def profile(self, kernels: Sequence[Kernel], *, threads: int, progress: Progress) -> Profile:
        """See `AbstractTimer.profile`."""
        shapes: dict[str, list[Kernel]] = {}
        for kernel in kernels:
            shapes.setdefault(kernel.shape, []).append(kernel)
        found: dict[str, list[float]] = {}
        for shape, alike in tracked(progress, "profile", PASSES * list(shapes.items()), PASSES * len(shapes)):
            seconds = kernel_seconds([kernel_model(kernel) for kernel in alike], threads)
            found[shape] = min(found.get(shape, seconds), seconds, key=sum)
        seconds = {kernel: time for shape in shapes for kernel, time in zip(shapes[shape], found[shape], strict=True)}
        return Profile(runtime=runtime_name(), processor=processor_name(), threads=threads, seconds=seconds)

    def latencies(self, model: Model, batch: Batch, folders: Sequence[Path], *, threads: int) -> tuple[float, ...]:
        """See `AbstractTimer.latencies`."""
        given = {name: values.contiguous().numpy() for name, values in fed(model.inputs, batch).items()}
        paths = [model.path, *(folder / MODEL_FILE for folder in folders)]
        return call_seconds([_call(session_of(str(path), threads), given) for path in paths], threads)

    def _packed(self, slot: Slot, format: Format, original: Sequence[Kernel], settings: Settings) -> tuple[Kernel, ...]:
        """What runs a site in a format: MatMulNBits where it is stored for that, else what runs it anyway."""
        block = smallest_block(slot, [format]) if isinstance(format, AffineFormat) else None
        if block is None or not slot.readers or settings.style == "qdq":
            return tuple(original)
        assert isinstance(format, AffineFormat)
        container = uniform_container(slot, format, block, settings)
        look_up = {"bits": container, "block_size": min(block, LARGEST_GATHER_BLOCK)}
        return tuple(
            _as(kernel, "GatherBlockQuantized", **look_up)
            if kernel.operator == "Gather"
            else self._product(kernel, container, block)
            for kernel in original
        )

    def _pair(self, operator: str, original: Sequence[Kernel]) -> tuple[Kernel, ...]:
        products = [kernel for kernel in original if kernel.operator == "MatMul"]
        return tuple(self._product(kernel, MIXED_CONTAINER, MIXED_BLOCK, operator) for kernel in products)

    def _product(self, kernel: Kernel, bits: int, block: int, operator: str = "MatMulNBits") -> Kernel:
        return _as(kernel, operator, bits=bits, block_size=block, accuracy_level=self.accuracy_level)


def _original(slot: Slot, use: Use, node: Node | None, shape: Sequence[int]) -> Kernel | None:
    """What runs an operator in the model as it is."""
    site = slot.site
    if use.kind is UseKind.EMBEDDING:
        return Kernel(operator="Gather", tokens=math.prod(shape), columns=site.columns, rows=1)
    if use.kind is UseKind.LINEAR:
        tokens = math.prod(shape) // site.columns
        return Kernel(operator="MatMul", tokens=tokens, columns=site.columns, rows=site.rows)
    if node is None or node.operator != "Conv" or len(site.shape) not in RANKS:
        return None
    axes = RANKS[len(site.shape)]
    strides = node.integers("strides", (1,) * axes)
    lead = (1,) * (2 - axes)  # a convolution along one axis is one of height 1
    image, kernel = (*lead, *shape[2:]), (*lead, *site.shape[2:])
    return _convolution(image, site.shape[1], site.rows, kernel, (*lead, *strides), node.integer("group", 1))


def _rounding(shape: Sequence[int], *, dynamic: bool) -> Kernel:
    """What rounds a value of this shape for the products that read it."""
    operator = "DynamicQuantizeLinear" if dynamic else "QuantizeLinear"
    return Kernel(operator=operator, tokens=math.prod(shape[:-1]), columns=shape[-1], rows=1)


def _convolution(
    image: Sequence[int], channels: int, rows: int, kernel: Sequence[int], strides: Sequence[int], groups: int
) -> Kernel:
    """A convolution padded by half its kernel; `channels` are those of one group."""
    places = math.prod(-(-size // stride) for size, stride in zip(image, strides, strict=True))
    window = (*image, *kernel, *strides, groups)
    return Kernel(operator="Conv", tokens=places, columns=channels * math.prod(kernel), rows=rows, window=window)


def _as(kernel: Kernel, operator: str, **options: int) -> Kernel:
    """Another kernel on the same shape."""
    return Kernel(
        operator=operator_text(operator, **options),
        tokens=kernel.tokens,
        columns=kernel.columns,
        rows=kernel.rows,
        window=kernel.window,
    )


def _call(session: Any, given: Mapping[str, Any]) -> Callable[[], Any]:
    """A call of a session; it may lack inputs that its output does not depend on.

    Raises:
        ProfileError: it wants others, or fails.
    """
    feeds = {entry.name: given[entry.name] for entry in session.get_inputs() if entry.name in given}
    try:
        session.run(None, feeds)
    except Exception as error:  # the runtime's own exceptions have no common class
        raise ProfileError(f"ONNX Runtime does not run the model on one sample, to be timed: {error}") from error
    return lambda: session.run(None, feeds)
