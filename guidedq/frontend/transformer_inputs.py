"""What a transformers model takes, by its own account: the names, dtypes and shapes of the inputs it needs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers.models.auto import modeling_auto

from guidedq.errors import ModelError
from guidedq.ir.model import InputSpec

PARTS = ("vision_config", "audio_config", "encoder", "encoder_config", "backbone_config")
"""Where a configuration made of several keeps what images or sounds are like."""
BANDS = ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim")
"""What configurations call the number of features of a frame of sound."""
Inputs = tuple[InputSpec, ...]


def possible_inputs(whole: Any) -> tuple[Inputs, ...]:
    """Sets of inputs that the model may need, the most likely first: its main one alone, with an image, with a text.

    The tokens that it predicts come first in each.

    Raises:
        ModelError: the main input is of a kind that is not understood.
    """
    taken: Mapping[str, Any] = inspect.signature(whole.forward).parameters
    usual = _main_inputs(whole, taken)
    names = {spec.name for spec in usual}
    found = [usual]
    if "pixel_values" in taken and "pixel_values" not in names:
        found.append((*usual, _image(whole.config)))
    if "input_ids" in taken and "input_ids" not in names:
        found.append((*_text(whole, taken), *usual))
    if whole.main_input_name == "input_values" and (bands := _bands(whole.config)) is not None:
        frames = getattr(whole.config, "max_length", None)
        found.append((InputSpec(name="input_values", dtype=torch.float32, shape=(None, frames, bands)),))
    return tuple(found)


def is_causal(whole: Any) -> bool:
    """Whether it is a language model that reads packed text: no padding, so no mask."""
    names = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return type(whole).__name__ in names and not whole.config.is_encoder_decoder


def _main_inputs(whole: Any, taken: Mapping[str, Any]) -> Inputs:
    main, config = whole.main_input_name, whole.config
    decodes = config.is_encoder_decoder and "decoder_input_ids" in taken and not _classifies(whole)
    decoder = (_tokens("decoder_input_ids"),) if decodes else ()
    if main == "input_ids":
        return (*decoder, *_text(whole, taken))
    if main == "pixel_values":
        return (*decoder, _image(config))
    if main in ("input_features", "input_values"):
        return (*decoder, _sound(main, config))
    raise ModelError(f"{type(whole).__name__} takes {main!r}, which is not understood. Give it as an ONNX file.")


def _classifies(whole: Any) -> bool:
    """Whether it reads a class off a text's last token, so that one of encoder and decoder gives both the same text."""
    return type(whole).__name__ in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()


def _tokens(name: str) -> InputSpec:
    return InputSpec(name=name, dtype=torch.int64, shape=(None, None))


def _text(whole: Any, taken: Mapping[str, Any]) -> Inputs:
    config, tokens = whole.config, _tokens("input_ids")
    if config.is_encoder_decoder and _classifies(whole):
        tokens = replace(tokens, last=config.eos_token_id)
    names: list[str] = []
    if not is_causal(whole) and "attention_mask" in taken:
        names.append("attention_mask")
        if getattr(config, "type_vocab_size", 0) > 1 and "token_type_ids" in taken:
            names.append("token_type_ids")
    return (tokens, *map(_tokens, names))


def _image(config: Any) -> InputSpec:
    """An image, or as many of them as a film has."""
    size = _first(config, "image_size")
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    frames = _first(config, "num_frames")
    shape = (_first(config, "num_channels") or 3, height, width)
    return InputSpec(
        name="pixel_values", dtype=torch.float32, shape=(None, *(() if frames is None else (frames,)), *shape)
    )


def _sound(name: str, config: Any) -> InputSpec:
    """Samples of a wave, or frames of features; Whisper has the features before the frames."""
    shape: tuple[int | None, ...] = (None, None)
    if name == "input_features":
        shape = (None, None, _bands(config))
        if hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
            shape = (None, config.num_mel_bins, 2 * config.max_source_positions)
    return InputSpec(name=name, dtype=torch.float32, shape=shape)


def _bands(config: Any) -> int | None:
    return next((value for value in (_first(config, name) for name in BANDS) if value is not None), None)


def _first(config: Any, name: str) -> Any:
    """The configuration's value of that name, else that of the first of its parts that has one."""
    return next((value for value in (getattr(part, name, None) for part in _parts(config)) if value is not None), None)


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for name in PARTS:
        if (part := getattr(config, name, None)) is not None:
            yield from _parts(part)
