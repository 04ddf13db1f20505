"""Text from an artifact, token by token as it is written."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from guidedq.errors import ArtifactError, CalibrationError


def generate_text(
    folder: Path,
    prompt: str,
    *,
    new_tokens: int,
    temperature: float,
    seed: int,
    write: Callable[[str], object],
    schedule: str | None = None,
) -> None:
    """Continue a prompt.

    Args:
        folder: A language model that the torch backend wrote.
        prompt: What comes before.
        new_tokens: How many tokens at most; fewer if the model ends the text.
        temperature: 0 takes the likeliest token each time; above, logits are divided by it and tokens are drawn.
        seed: Seeds the draws.
        write: Called with each piece of text as soon as it is settled.
        schedule: At how many bits a nested artifact is read: a schedule's text, or its file; by default the artifact's
            own, if it has one, else the widest precision.

    Raises:
        ScheduleError: the schedule cannot be read, or asks for precisions that the artifact lacks.
        ArtifactError: the artifact is damaged, an ONNX file, has no tokenizer, or writes no text.
        CalibrationError: the prompt is empty, or longer than the model's context.
    """
    if (folder / "model.onnx").is_file() and not (folder / "manifest.json").is_file():
        raise ArtifactError(
            f"{folder} is an ONNX artifact, which computes logits but does not write text. "
            "Compile the model with --backend torch."
        )
    import torch

    from guidedq.api import load_quantized
    from guidedq.schedules.following import following
    from guidedq.schedules.run import schedule_of

    model = load_quantized(folder)
    if not model.can_generate() or model.main_input_name != "input_ids":
        raise ArtifactError(f"{folder} holds a {type(model).__name__}, which does not continue text.")
    tokenizer = _tokenizer(folder)
    inputs = dict(tokenizer(prompt, return_tensors="pt"))
    _check_length(model, inputs["input_ids"].shape[1], new_tokens)
    drawn = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    accepted = inspect.signature(model.forward).parameters
    followed = schedule_of(folder, schedule, model)
    with torch.random.fork_rng(devices=()), nullcontext() if followed is None else following(model, followed):
        torch.manual_seed(seed)
        model.generate(
            **{name: values for name, values in inputs.items() if name in accepted},
            **drawn,
            max_new_tokens=new_tokens,
            streamer=_streamer(tokenizer, write),
        )


def _streamer(tokenizer: Any, write: Callable[[str], object]) -> Any:
    from transformers import TextStreamer

    class Writer(TextStreamer):
        """Hands on text where transformers would print it."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            write(text)

    return Writer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _tokenizer(folder: Path) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each kind of tokenizer fails in its own way
        raise ArtifactError(
            f"{folder} has no tokenizer that transformers can load ({type(error).__name__}: {error}). "
            "Copy the original's tokenizer files into it."
        ) from error


def _check_length(model: Any, tokens: int, new_tokens: int) -> None:
    if not tokens:
        raise CalibrationError("the prompt is empty: give at least one word with --prompt.")
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if isinstance(context, int) and not model.config.is_encoder_decoder and tokens + new_tokens > context:
        raise CalibrationError(
            f"the prompt has {tokens} tokens, and with {new_tokens} new ones exceeds the model's context of {context}. "
            f"Shorten it, or ask for at most {max(context - tokens, 0)} with --max-new-tokens."
        )
