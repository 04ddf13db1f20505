"""The torch backend as a stage."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from guidedq.artifacts.emission import Emission
from guidedq.artifacts.footprint import Footprint
from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.errors import BackendError
from guidedq.ir.activation_rounding import ActivationRounding
from guidedq.ir.graph import Graph
from guidedq.ir.model import Model
from guidedq.ir.program import Batch
from guidedq.quant.formats import EntropyCode, RoundedFormat
from guidedq.quant.nested import NestedFormat
from guidedq.schedules.precision import set_precision
from guidedq.stages import AbstractBackend

from .candidates import nested_site_footprint, site_footprint
from .contents import contents_of
from .folder import Activations, write_folder
from .integers import check_gain, round_inputs, rounding_of
from .loading import load_folder
from .weights_file import base_bytes


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTorchBackend(AbstractBackend):
    """Writes a folder that `guidedq.load_quantized` loads.

    Widths are true: 1 to 8 bits, or codes stored by their entropy; any format in any row.

    Attributes:
        fused: Give sites that read one input one format, as a runtime that fuses them would need. Plain torch does not.
        activations: `int8`: linear layers round what they multiply, and are faster for it (`integers.py`). Codes then
            have fixed widths, and the folder says how it is to be read.
    """

    fused: bool = False
    activations: Activations = "none"

    def entropy_code(self, model: Model, *, asked: bool) -> EntropyCode | None:
        """Streams are unpacked when the folder is loaded, at some hundred million codes a second; not for int8 inputs.

        Raises:
            BackendError: it was asked for beside int8 activations.
        """
        if self.activations == "none":
            return "huffman"
        if asked:
            raise BackendError("--activations int8 takes fixed widths: leave --set coding=entropy out, or it.")
        return None

    def footprint(self, model: Model, formats: Sequence[RoundedFormat]) -> Footprint:
        """What each site can be stored as; the counts are those of the file, to the byte, but for entropy formats.

        Raises:
            BackendError: the model did not come from a Hugging Face folder.
        """
        _check_source(model)
        contents = contents_of(model)
        sites = model.graph.quantizable
        return Footprint(
            base_bytes=base_bytes(contents.tensors, sites),
            sites={site.name: site_footprint(site, model.program.parameter(site.name), formats) for site in sites},
        )

    def nested_footprint(self, model: Model, format: NestedFormat) -> Footprint:
        """Bytes of the file with every site nested.

        Raises:
            BackendError: the model did not come from a Hugging Face folder, or activations are to be rounded.
        """
        _check_source(model)
        if self.activations != "none":
            raise BackendError(f"nested weights are multiplied in float: leave --activations {self.activations} out.")
        contents = contents_of(model)
        sites = model.graph.quantizable
        return Footprint(
            base_bytes=base_bytes(contents.tensors, sites),
            sites={
                site.name: nested_site_footprint(site, model.program.parameter(site.name), format) for site in sites
            },
        )

    def fuses(self, graph: Graph) -> Sequence[Sequence[str]]:
        """Nothing, unless asked for."""
        return graph.shared_inputs if self.fused else ()

    def own_rounding(self, model: Model, formats: Sequence[RoundedFormat]) -> ActivationRounding | None:
        """What linear layers do to their inputs with `activations=int8`; none else."""
        return rounding_of(model) if self.activations == "int8" else None

    def emit(
        self,
        model: Model,
        weights: Iterable[QuantizedWeight],
        folder: Path,
        activations: ActivationRounding | None = None,
    ) -> Emission:
        """Write configuration, tokenizer, packed weights and manifest.

        Raises:
            BackendError: the model did not come from a Hugging Face folder, or the weights are not its sites.
        """
        _check_source(model)
        path, sizes = write_folder(model, weights, folder, self.activations)
        return Emission(weights_file=path, site_bytes=sizes)

    def open(self, model: Model, folder: Path, *, precision: int | None = None) -> Callable[[Batch], Tensor]:
        """The loaded model as a function to its main output, in float32."""
        from guidedq.frontend.transformer_module import TransformerModule

        loaded = self.load(folder)
        if precision is not None:
            set_precision(loaded, precision)
        accepted = inspect.signature(loaded.forward).parameters
        module = TransformerModule(loaded, {"use_cache": False} if "use_cache" in accepted else {})

        def predict(batch: Batch) -> Tensor:
            with torch.no_grad():
                return module(**batch).float()

        return predict

    def load(self, folder: Path) -> Any:
        """The transformers model with packed modules, in float32 and evaluation mode.

        Raises:
            ArtifactError: a file is missing, truncated, altered or from a newer version; or int8 inputs are asked for
                where nothing is multiplied in integers.
        """
        loaded = load_folder(folder)
        if self.activations == "int8" and loaded.config.quantization_config.activations != "int8":
            check_gain(loaded)
            round_inputs(loaded)
        return loaded


def _check_source(model: Model) -> None:
    if model.source != "hugging_face":
        raise BackendError(
            f"the torch backend writes Hugging Face models; {model.name} is an {model.source} model. "
            "`--backend onnx` can write it."
        )
