"""The ONNX backend: one file that stock ONNX Runtime runs, with codes of any width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from onnx import ModelProto
from onnx.inliner import inline_local_functions
from torch import Tensor

from guidedq.artifacts.activations import ActivationPlace
from guidedq.artifacts.emission import Emission
from guidedq.artifacts.footprint import Footprint
from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.errors import BackendError
from guidedq.ir.activation_rounding import ActivationRounding
from guidedq.ir.graph import Graph, UseKind
from guidedq.ir.model import Model
from guidedq.ir.onnx_interpreter import parse_model
from guidedq.ir.onnx_session import LARGEST_MESSAGE, message_bytes
from guidedq.ir.program import Batch, TorchProgram
from guidedq.quant.formats import EntropyCode, EntropyFormat, RoundedFormat
from guidedq.quant.integer import REDUCED_CODE, WHOLE_CODE
from guidedq.stages import AbstractBackend
from guidedq.timer import AbstractTimer

from .accounting import count_footprint, stored_bytes
from .cached import cached_call
from .candidates import offered_formats
from .casting import Cast, cast_tensors
from .compaction import compacted
from .emission import write_model
from .export import export_model, plain_call
from .genai import write_folder
from .integer import put_integer_operators, whole_rounding
from .integer_places import dynamic_places, static_places
from .qdq import QDQ_OPSET
from .runtime import check_model, facts_of, notices_of, open_function, open_session
from .settings import INTEGER_LEVEL, Layout, Settings, Style
from .skeleton import Skeleton, build_skeleton
from .source import read_source
from .timer import OnnxTimer
from .unpacking import BITWISE_OPSET, SMALLEST_OPSET

Activations = Literal["none", "dynamic", "static"]
REPRESENTATIVE_BLOCK = 64
"""The block whose rounding of activations is forecast, before the formats are known: half and twice of it differ by
less than a tenth in the error that they make."""
CODED_PARAMETERS = 4_000_000
"""Up to this size weights are stored by their entropy unasked: a model is then loaded in a second or two. And its graph
is made compact: an exporter's names and unfolded constants can take a fifth of the file."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxBackend(AbstractBackend):
    """Writes `model.onnx` for stock ONNX Runtime.

    Attributes:
        accuracy_level: How MatMulNBits computes: 4 rounds activations to int8 and is the fast one, 0 to 3 use floats.
        opset: Version of the standard operators for models that are exported; an ONNX file keeps its own.
        names: `keep` leaves the graph of an ONNX file as it is; `short` folds its constants, renames all but inputs and
            outputs and drops the names of nodes; `auto` does so where it tells, in models of up to 4 million weights.
        fused: Give the sites that read one tensor (query, key, value; gate, up) one format.
        activations: How activations meet weights: `none` as they are (MatMulNBits at level 4 rounds them on its own
            account), `static` in uint8 with ranges from the calibration, so that convolutions and matrix products are
            computed in integers, `dynamic` in uint8 with the range of every call, for matrix products. Sites that this
            would hurt are computed in float.
        reduce_range: Int8 codes of weights are -64 to 64, so that no processor saturates, as x86 without VNNI would;
            `false` takes -127 to 127, for machines with VNNI and for ARM.
        external_bytes: Models that could be larger than this keep their tensors in `model.onnx.data`.
        style: `native` is unpacked at load; `qdq` stands behind DequantizeLinear, for other runtimes too; `baked` is
            unpacked already, what has no container staying in floats. The budget counts the file in any style.
        cast: `fp16` or `bf16` stores tensors that are no sites (norms, biases) in 16 bits, restored at load, and sites
            left alone in that type. Activations stay as they are.
        layout: `genai` gives a language model's graph a cache, and puts beside it what ONNX Runtime GenAI needs.
    """

    accuracy_level: int = INTEGER_LEVEL
    opset: int = 21
    names: Literal["auto", "keep", "short"] = "auto"
    fused: bool = False
    activations: Activations = "none"
    reduce_range: bool = True
    external_bytes: int = 1_500_000_000
    style: Style = "native"
    cast: Cast = "none"
    layout: Layout = "plain"

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy_level <= INTEGER_LEVEL:
            raise BackendError(f"accuracy_level is 0 to {INTEGER_LEVEL}, found {self.accuracy_level}.")
        if self.opset < BITWISE_OPSET:
            raise BackendError(f"models are exported in opset {BITWISE_OPSET} or newer, found {self.opset}.")
        if self.style == "qdq" and self.opset < QDQ_OPSET:
            raise BackendError(f"style qdq needs opset {QDQ_OPSET} or newer, found {self.opset}.")
        if self.activations == "none" and not self.reduce_range:
            raise BackendError("reduce-range=false is for weights in integers: add --activations static or dynamic.")

    def entropy_code(self, model: Model, *, asked: bool) -> EntropyCode | None:
        """Rice codes, unpacked to float while the model loads, some 3 million weights a second: for small models.

        Raises:
            BackendError: they are asked for in a style in which nothing is unpacked.
        """
        if self.style != "native":
            if asked:
                raise BackendError(f"coding=entropy is unpacked at load: style {self.style} stores fixed widths alone.")
            return None
        return "rice" if asked or _parameters(model) <= CODED_PARAMETERS else None

    def footprint(self, model: Model, formats: Sequence[RoundedFormat]) -> Footprint:
        """The exact bytes of every site, from the model's own graph; see `AbstractBackend.footprint`."""
        places = self.places(model)
        skeleton, settings, _ = self._prepare(model, places, whole_rounding(places, model.graph.quantizable))
        left = "bf16" if self.cast == "bf16" else "fp16"
        offered = {
            site.name: offered_formats(site, model.matrix(site), formats, left) for site in model.graph.quantizable
        }
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

    def largest_code(self) -> int:
        """See `AbstractBackend.largest_code`."""
        return REDUCED_CODE if self.reduce_range else WHOLE_CODE

    def timer(self, model: Model | None = None) -> AbstractTimer:
        """ONNX Runtime's kernels; see `AbstractBackend.timer`."""
        if model is not None and model.source != "onnx":
            raise BackendError(
                f"the latency of ONNX files alone can be told; {model.name} is a {model.source} model. "
                "Export it to ONNX first."
            )
        return OnnxTimer(slots=self._timed_slots, accuracy_level=self.accuracy_level)

    def emit(
        self,
        model: Model,
        weights: Iterable[QuantizedWeight],
        folder: Path,
        activations: ActivationRounding | None = None,
    ) -> Emission:
        """Write `model.onnx`; check it against the standard, and that the runtime loads it and folds the unpacking."""
        skeleton, settings, told = self._prepare(model, self.places(model), activations)
        written = write_model(skeleton, weights, settings, folder)
        path, *more = written.files
        faults = check_model(path, model.path if model.source == "onnx" else None)
        facts = facts_of(path, written.tensors, self.accuracy_level)
        beside = write_folder(model, folder) if self.layout == "genai" else ()
        return Emission(
            weights_file=path,
            site_bytes=written.site_bytes,
            more_files=tuple(more),
            notices=(*faults, *told, *beside, *notices_of(facts, _integer_nodes(model, activations))),
            runtime=facts,
        )

    def open(self, model: Model, folder: Path, *, precision: int | None = None) -> Callable[[Batch], Tensor]:
        """The model as ONNX Runtime runs it, with its default options."""
        return open_function(folder, model.inputs, model.output, self.accuracy_level)

    def load(self, folder: Path) -> Any:
        """An `onnxruntime.InferenceSession` with default options."""
        return open_session(folder, self.accuracy_level)

    def _timed_slots(self, model: Model) -> tuple[Skeleton, Settings, frozenset[str]]:
        """The slots of a model, the settings they are written under, and the sites that may be computed in integers."""
        places = self.places(model)
        skeleton, settings, _ = self._prepare(model, places, whole_rounding(places, model.graph.quantizable))
        return skeleton, settings, frozenset(name for place in places for name in place.sites)

    def _source(self, model: Model, rounding: ActivationRounding | None) -> tuple[ModelProto, Mapping[str, str]]:
        """The user's own graph, sites of `rounding` with integer operators, and what its values are called now."""
        proto, sites = (
            read_source(model.path, QDQ_OPSET if self.style == "qdq" else SMALLEST_OPSET),
            model.graph.quantizable,
        )
        if rounding is not None and rounding.rows:
            put_integer_operators(proto, parse_model(proto), sites, rounding)
            if self.style == "qdq" and message_bytes(proto) <= LARGEST_MESSAGE:  # other runtimes read no functions
                proto = inline_local_functions(proto)
        names = [site.name for site in sites]
        if self.names == "short" or (self.names == "auto" and _parameters(model) <= CODED_PARAMETERS):
            return compacted(proto, names)
        return proto, {name: name for name in names}

    def _prepare(
        self, model: Model, places: Sequence[ActivationPlace], rounding: ActivationRounding | None
    ) -> tuple[Skeleton, Settings, tuple[str, ...]]:
        """The graph without its weights, how it will be written, and what the user should know of that."""
        sites = model.graph.quantizable
        cached = cached_call(model) if self.layout == "genai" else None
        if model.source == "onnx":
            proto, names = self._source(model, rounding)
        else:
            proto, names = export_model(model, cached or plain_call(model), self.opset)
        called = {new: name for name, new in names.items()}
        told = cast_tensors(proto, {names[site.name] for site in sites}, self.cast, called)
        unread = {name for place in places for name in place.sites}
        skeleton = build_skeleton(proto, sites, names, unread)
        largest = stored_bytes(skeleton.proto, external=False) + sum(2 * site.parameters for site in sites)
        settings = Settings(
            accuracy_level=self.accuracy_level,
            opset=skeleton.opset,
            element_type=skeleton.element_type,
            external=largest > self.external_bytes,
            style=self.style,
        )
        return skeleton, settings, told


def _parameters(model: Model) -> int:
    return sum(site.parameters for site in model.graph.quantizable)


def _integer_nodes(model: Model, rounding: ActivationRounding | None) -> int:
    """How many operators are to be computed in integers."""
    sites = [site for site in model.graph.quantizable if rounding is not None and site.name in rounding.rows]
    return sum(len(site.uses) for site in sites)
