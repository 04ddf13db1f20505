"""A decoder-only language model with its cache as inputs and outputs, by the names that ONNX Runtime GenAI expects."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from guidedq.errors import BackendError
from guidedq.frontend.transformer_module import LanguageModelModule
from guidedq.ir.model import Model
from guidedq.ir.program import Batch, TorchProgram

from .export import Call

TOKENS, MASK, POSITIONS = "input_ids", "attention_mask", "position_ids"
PAST_KEY, PAST_VALUE = "past_key_values.%d.key", "past_key_values.%d.value"
PRESENT_KEY, PRESENT_VALUE = "present.%d.key", "present.%d.value"
TRIAL_SAMPLES, TRIAL_TOKENS, TRIAL_PAST = 2, 3, 4
"""Sizes of the trial inputs; all differ and none is 1 or 0, which the exporter would take for constants."""
BATCH, PAST_LENGTH = 0, 2
"""Axes of a cache tensor `[sample, head, position, dimension]` whose sizes are free."""


def cached_call(model: Model) -> Call:
    """How the exporter calls the model: tokens, mask of past and new tokens, positions, and the cache.

    Raises:
        BackendError: the model is no decoder-only language model from a Hugging Face folder, or keeps no plain cache.
    """
    module = model.program.module if isinstance(model.program, TorchProgram) else None
    if not isinstance(module, LanguageModelModule):
        raise BackendError(
            f"{model.name}: layout genai needs a decoder-only language model from a Hugging Face folder. "
            "Use layout plain."
        )
    decoder = _CachedDecoder(module.__dict__["whole"])
    past = decoder.trial_cache(model.name)
    length = TRIAL_PAST + TRIAL_TOKENS
    positions = torch.arange(TRIAL_PAST, length).expand(TRIAL_SAMPLES, -1).contiguous()
    values = (
        torch.zeros(TRIAL_SAMPLES, TRIAL_TOKENS, dtype=torch.int64),
        torch.ones(TRIAL_SAMPLES, length, dtype=torch.int64),
        positions,
        *past,
    )
    layers = range(len(past) // 2)
    return Call(
        module=decoder,
        inputs=(TOKENS, MASK, POSITIONS, *(name % layer for layer in layers for name in (PAST_KEY, PAST_VALUE))),
        values=values,
        free=(*[(0, 1)] * 3, *[(BATCH, PAST_LENGTH)] * len(past)),
        outputs=("logits", *(name % layer for layer in layers for name in (PRESENT_KEY, PRESENT_VALUE))),
    )


def empty_cache(session: Any, batch: Batch) -> dict[str, np.ndarray]:
    """What a session of a cached model needs besides the tokens, when nothing is past; empty for other models."""
    shapes = {entry.name: entry.shape for entry in session.get_inputs()}
    if PAST_KEY % 0 not in shapes:
        return {}
    samples, tokens = batch[TOKENS].shape
    past = {name: shape for name, shape in shapes.items() if name not in (TOKENS, MASK, POSITIONS)}
    return {
        MASK: np.ones((samples, tokens), dtype=np.int64),
        POSITIONS: np.tile(np.arange(tokens, dtype=np.int64), (samples, 1)),
        **{name: np.zeros((samples, shape[1], 0, shape[3]), dtype=np.float32) for name, shape in past.items()},
    }


@final
class _CachedDecoder(nn.Module):
    """The model as a function of tensors: the cache goes in and comes out in the order of the layers, key first."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def trial_cache(self, name: str) -> list[Tensor]:
        """The cache after some tokens.

        Raises:
            BackendError: it is no cache of one key and one value a layer.
        """
        with torch.no_grad():
            outputs = self.whole(
                input_ids=torch.zeros(TRIAL_SAMPLES, TRIAL_PAST, dtype=torch.int64), use_cache=True, return_dict=True
            )
        cache = outputs.get("past_key_values")
        try:
            return _tensors(cache)
        except AttributeError as error:
            raise BackendError(
                f"{name} keeps a {type(cache).__name__}, expected a cache of a key and a value for each layer. "
                "Use layout plain."
            ) from error

    def forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Logits, and the cache with the new tokens."""
        from transformers import DynamicCache

        outputs = self.whole(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=DynamicCache(list(zip(past[::2], past[1::2], strict=True))),
            use_cache=True,
            return_dict=True,
        )
        return (outputs["logits"], *_tensors(outputs["past_key_values"]))


def _tensors(cache: Any) -> list[Tensor]:
    return [values for layer in cache.layers for values in (layer.keys, layer.values)]
