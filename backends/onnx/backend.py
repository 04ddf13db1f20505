"""The ONNX backend: one file that stock ONNX Runtime runs, with codes of any width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from torch import Tensor

from guidedq.artifacts.activations import ActivationPlace
from guidedq.artifacts.footprint import Footprint
from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.errors import BackendError
from guidedq.ir.activation_rounding import ActivationRounding
from guidedq.ir.graph import Graph, UseKind
from guidedq.ir.model import Model
from guidedq.ir.onnx_interpreter import parse_model
from guidedq.ir.program import Batch, TorchProgram
from guidedq.quant.formats import EntropyCode, EntropyFormat, RoundedFormat
from guidedq.stages import AbstractBackend, Emission

from .accounting import count_footprint, stored_bytes
from .candidates import offered_formats
from .emission import write_model
from .export import export_model
from .integer import put_integer_operators, whole_rounding
from .integer_places import dynamic_places, static_places
from .runtime import check_model, notices_of, open_function, open_session
from .settings import INTEGER_LEVEL, Settings
from .skeleton import Skeleton, build_skeleton
from .source import read_source
from .unpacking import BITWISE_OPSET

Activations = Literal["none", "dynamic", "static"]
REPRESENTATIVE_BLOCK = 64
"""The block whose rounding of activations is forecast, before the formats are known: half and twice of it differ by
less than a tenth in the error that they make."""
CODED_PARAMETERS = 4_000_000
"""Up to this size weights are stored by their entropy unasked: a model is then loaded in a second or two."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxBackend(AbstractBackend):
    """Writes `model.onnx` for stock ONNX Runtime.

    Attributes:
        accuracy_level: How MatMulNBits computes: 4 rounds activations to int8 and is the fast one, 0 to 3 use floats.
        opset: Version of the standard operators for models that are exported; an ONNX file keeps its own.
        fused: Give the sites that read one tensor (query, key, value; gate, up) one format.
        activations: How activations meet weights: `none` as they are (MatMulNBits at level 4 rounds them on its own
            account), `static` in uint8 with ranges from the calibration, so that convolutions and matrix products are
            computed in integers, `dynamic` in uint8 with the range of every call, for matrix products. Sites that this
            would hurt are computed in float.
        external_bytes: Models that could be larger than this keep their tensors in `model.onnx.data`.
    """

    accuracy_level: int = INTEGER_LEVEL
    opset: int = 21
    fused: bool = False
    activations: Activations = "none"
    external_bytes: int = 1_500_000_000

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy_level <= INTEGER_LEVEL:
            raise BackendError(f"accuracy_level is 0 to {INTEGER_LEVEL}, found {self.accuracy_level}.")
        if self.opset < BITWISE_OPSET:
            raise BackendError(f"models are exported in opset {BITWISE_OPSET} or newer, found {self.opset}.")

    def entropy_code(self, model: Model, *, asked: bool) -> EntropyCode | None:
        """Rice codes, unpacked to float while the model loads, some 3 million weights a second: for small models."""
        parameters = sum(site.parameters for site in model.graph.quantizable)
        return "rice" if asked or parameters <= CODED_PARAMETERS else None

    def footprint(self, model: Model, formats: Sequence[RoundedFormat]) -> Footprint:
        """The exact bytes of every site, from the model's own graph; see `AbstractBackend.footprint`."""
        skeleton, settings = self._prepare(model, whole_rounding(self.places(model), model.graph.quantizable))
        offered = {site.name: offered_formats(site, model.matrix(site), formats) for site in model.graph.quantizable}
        return count_footprint(skeleton, offered, settings)

    def fuses(self, graph: Graph) -> Sequence[Sequence[str]]:
        """ONNX Runtime fuses none by itself; the groups that read one tensor if `fused` is set."""
        return graph.shared_inputs if self.fused else ()

    def own_rounding(self, model: Model, formats: Sequence[RoundedFormat]) -> ActivationRounding | None:
        """MatMulNBits at accuracy level 4 rounds what it multiplies to symmetric int8 per block of inputs.

        Weights stored by their entropy are multiplied in float.
        """
        if any(isinstance(format, EntropyFormat) for format in formats):
            return None
        if self.accuracy_level != INTEGER_LEVEL:
            return None
        uses = [use for site in model.graph.quantizable for use in site.uses]
        return ActivationRounding(
            operators={use.operator: REPRESENTATIVE_BLOCK for use in uses if use.kind is UseKind.LINEAR}
        )

    def places(self, model: Model) -> Sequence[ActivationPlace]:
        """Around convolutions and matrix products; see `AbstractBackend.places`."""
        if self.activations == "none":
            return ()
        if model.source != "onnx":
            raise BackendError(
                f"--activations {self.activations} takes ONNX files; {model.name} is a {model.source} model. "
                "Export it to ONNX first."
            )
        if not isinstance(model.program, TorchProgram):
            raise BackendError(
                f"{model.name} cannot be run in torch, which the ranges of its activations are measured in: leave "
                f"--activations {self.activations} out."
            )
        parsed, sites = parse_model(read_source(model.path)), model.graph.quantizable
        found = (dynamic_places if self.activations == "dynamic" else static_places)(parsed, sites)
        if not found:
            raise BackendError(
                f"{model.name} has no float32 weight in a matrix product"
                + (" or convolution" if self.activations == "static" else "")
                + f" that ONNX Runtime computes in integers: leave --activations {self.activations} out."
            )
        return found

    def emit(
        self,
        model: Model,
        weights: Iterable[QuantizedWeight],
        folder: Path,
        activations: ActivationRounding | None = None,
    ) -> Emission:
        """Write `model.onnx`; check it against the standard, and that the runtime loads it and folds the unpacking."""
        skeleton, settings = self._prepare(model, activations)
        (path, *more), sizes = write_model(skeleton, weights, settings, folder)
        faults = check_model(path, model.path if model.source == "onnx" else None)
        return Emission(
            weights_file=path,
            site_bytes=sizes,
            more_files=tuple(more),
            notices=(*faults, *notices_of(path, settings, _integer_nodes(model, activations))),
        )

    def open(self, model: Model, folder: Path) -> Callable[[Batch], Tensor]:
        """The model as ONNX Runtime runs it, with its default options."""
        return open_function(folder, model.output)

    def load(self, folder: Path) -> Any:
        """An `onnxruntime.InferenceSession` with default options."""
        return open_session(folder)

    def _prepare(self, model: Model, rounding: ActivationRounding | None) -> tuple[Skeleton, Settings]:
        """The graph without its weights, and how it will be written, sites of `rounding` with integer operators."""
        sites = model.graph.quantizable
        if model.source == "onnx":
            proto = read_source(model.path)
            names = {site.name: site.name for site in sites}
            if rounding is not None and rounding.rows:
                put_integer_operators(proto, parse_model(proto), sites, rounding)
        else:
            proto, names = export_model(model, self.opset)
        unread = {name for place in self.places(model) for name in place.sites}
        skeleton = build_skeleton(proto, sites, names, unread)
        largest = stored_bytes(skeleton.proto, external=False) + sum(2 * site.parameters for site in sites)
        settings = Settings(
            accuracy_level=self.accuracy_level,
            opset=skeleton.opset,
            element_type=skeleton.element_type,
            external=largest > self.external_bytes,
        )
        return skeleton, settings


def _integer_nodes(model: Model, rounding: ActivationRounding | None) -> int:
    """How many operators are to be computed in integers."""
    sites = [site for site in model.graph.quantizable if rounding is not None and site.name in rounding.rows]
    return sum(len(site.uses) for site in sites)
