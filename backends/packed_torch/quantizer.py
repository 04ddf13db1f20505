"""Artifacts at home in transformers: `from_pretrained` and `save_pretrained` by its own quantizer interface.

The folder's `config.json` says `"quant_method": "guidedq"` and which weights are packed. transformers finds the two
classes below by that name once `register` was called, which `import guidedq` sees to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, final

from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from guidedq.artifacts.manifest import SiteEntry, read_packed_content
from guidedq.errors import ArtifactError

from .folder import ACTIVATIONS_KEY, METHOD, Activations, quantization_config, read_activations

OFFLOADED = frozenset({"disk", "meta"})
"""Places of a device map where bytes could not be read."""


def register() -> None:
    """Make the method known to transformers."""
    from transformers.quantizers.auto import register_quantization_config, register_quantizer

    register_quantization_config(METHOD)(PackedConfig)
    register_quantizer(METHOD)(PackedQuantizer)


@final
class PackedConfig(QuantizationConfigMixin):
    """Which weights of a model are packed, as `quantization_config` of a configuration tells it.

    Attributes:
        sites: The packed weights.
        tied: Other parameters that are stored under another's name: from name to stored name.
        activations: What linear layers do to what they multiply.
    """

    def __init__(self, sites: Iterable[SiteEntry], tied: Mapping[str, str], activations: Activations) -> None:
        self.quant_method = cast("Any", METHOD)
        self.sites = tuple(sites)
        self.tied = dict(tied)
        self.activations: Activations = activations

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Read it from the values in `config.json`.

        Raises:
            ArtifactError: they are damaged, or of a newer version.
        """
        content = {name: value for name, value in config_dict.items() if name not in ("quant_method", ACTIVATIONS_KEY)}
        packed = read_packed_content(content, "quantization_config in config.json")
        made = cls(*packed, read_activations(config_dict))
        return (made, kwargs) if return_unused_kwargs else made

    def to_dict(self) -> dict[str, Any]:
        """The values in `config.json`."""
        return quantization_config(self.sites, self.tied, self.activations)


@final
class PackedQuantizer(HfQuantizer):
    """Loads and saves models with packed weights; see `placing.py`. It quantizes nothing: `guidedq compile` does."""

    requires_calibration = True

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Refuse what would leave packed weights where they cannot be read.

        Raises:
            ArtifactError: a part of the model would be offloaded.
        """
        places = {str(place) for place in device_map.values()} if isinstance(device_map, dict) else set[str]()
        if places & OFFLOADED or ("cpu" in places and len(places) > 1):
            raise ArtifactError(
                "packed weights cannot be offloaded: the device map leaves a part of the model on "
                f"{', '.join(sorted(places))}. Put all of it on devices that compute, or all on the CPU."
            )

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> Any:
        from guidedq.frontend.experts import split_experts
        from guidedq.frontend.transformer_module import expose_lookups

        from .placing import check_digests, check_names, expect_bytes, read_headers

        config: Any = self.quantization_config
        if not checkpoint_files:
            raise ArtifactError("packed weights are loaded from their files: give from_pretrained a folder.")
        paths = [Path(path) for path in checkpoint_files]
        check_digests(paths)
        stored = read_headers(paths)
        expose_lookups(model)  # names are those that the frontend gave
        split_experts(model)
        if _is_its_class(model):
            check_names(model, config.sites, config.tied, stored)
        placed = expect_bytes(model, config.sites, config.tied, stored)
        self.quantization_config = cast("Any", PackedConfig(*placed, config.activations))
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        from .integers import round_inputs
        from .placing import place_packed

        config: Any = self.quantization_config
        place_packed(model, config.sites, config.tied, model.config.dtype)
        if config.activations == "int8":
            round_inputs(model)
        model._weight_conversions = []  # saved under the names that the model has
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> Any:
        """The renamings alone for another class than the artifact's, whose own names and layouts need no conversion."""
        from transformers.core_model_loading import WeightRenaming

        if _is_its_class(model):
            return []
        return [conversion for conversion in weight_conversions if isinstance(conversion, WeightRenaming)]

    def get_state_dict_and_metadata(self, model: Any) -> Any:
        """What `save_pretrained` writes: tensors by name, and no metadata."""
        from .placing import stored_state

        config: Any = self.quantization_config
        return stored_state(model, config.sites, config.tied), {}

    def is_serializable(self, *_: Any) -> Any:
        """Yes: what is saved loads again."""
        return True

    @property
    def is_trainable(self) -> Any:
        """No gradient passes a packed weight into its codes."""
        return False


def _is_its_class(model: Any) -> bool:
    """Whether the artifact was made of a model of the same class."""
    return type(model).__name__ in (model.config.architectures or ())
