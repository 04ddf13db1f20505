"""The folder that ONNX Runtime GenAI generates from: the model, genai_config.json and the tokenizer's files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from guidedq.ir.model import Model
from guidedq.ir.program import TorchProgram

from .cached import MASK, PAST_KEY, PAST_VALUE, POSITIONS, PRESENT_KEY, PRESENT_VALUE, TOKENS, cached_call
from .emission import MODEL_FILE

CONFIG_FILE = "genai_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
GENERIC_TYPE = "llama"
"""What a model is said to be that GenAI has no name for: to it all of them are graphs with a cache."""
KNOWN_TYPES = frozenset(
    {
        "chatglm",
        "ernie4_5",
        "gemma",
        "gemma2",
        "gpt2",
        "granite",
        "internlm2",
        "llama",
        "mistral",
        "nemotron",
        "olmo",
        "phi",
        "phi3",
        "phimoe",
        "qwen2",
        "qwen3",
        "smollm3",
    }
)
"""The decoder-only types of GenAI 0.18 whose cache is a key and a value for each layer."""
LONGEST = 2048
"""Tokens, where the model states no limit."""


def write_folder(model: Model, folder: Path) -> tuple[str, ...]:
    """Put the configuration and the tokenizer's files beside the model file.

    Returns:
        A notice if there is no tokenizer.
    """
    text = json.dumps(configuration(model), indent=2) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    found = [model.path / name for name in TOKENIZER_FILES if (model.path / name).is_file()]
    for path in found:
        shutil.copyfile(path, folder / path.name)
    if not any(path.name == TOKENIZER_FILES[0] for path in found):
        return (f"there is no {TOKENIZER_FILES[0]} to copy: GenAI generates from token ids only.",)
    return ()


def configuration(model: Model) -> dict[str, Any]:
    """What genai_config.json says of the model."""
    assert isinstance(model.program, TorchProgram)
    whole: Any = model.program.module.__dict__["whole"]
    config = whole.config.get_text_config(decoder=True)
    cache = cached_call(model).values[3]
    ends = _token(whole, "eos_token_id", 0)
    return {
        "model": {
            "type": config.model_type if config.model_type in KNOWN_TYPES else GENERIC_TYPE,
            "bos_token_id": _token(whole, "bos_token_id", 0),
            "eos_token_id": ends,
            "pad_token_id": _token(whole, "pad_token_id", ends[0] if isinstance(ends, list) else ends),
            "context_length": model.context_length or LONGEST,
            "vocab_size": model.vocabulary_size,
            "decoder": {
                "filename": MODEL_FILE,
                "session_options": {"provider_options": []},
                "head_size": cache.shape[3],
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_attention_heads,
                "num_hidden_layers": config.num_hidden_layers,
                "num_key_value_heads": cache.shape[1],
                "inputs": {
                    TOKENS: TOKENS,
                    MASK: MASK,
                    POSITIONS: POSITIONS,
                    "past_key_names": PAST_KEY,
                    "past_value_names": PAST_VALUE,
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": PRESENT_KEY,
                    "present_value_names": PRESENT_VALUE,
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": model.context_length or LONGEST,
            "past_present_share_buffer": False,
        },
    }


def _token(whole: Any, name: str, otherwise: Any) -> Any:
    """A special token, or several, as the model's settings for generation say, else its configuration."""
    for config in (whole.generation_config, whole.config):
        if (value := getattr(config, name, None)) is not None:
            return value
    return otherwise
