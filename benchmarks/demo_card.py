"""Measure a trained demo model and write its MODEL_CARD.md; called by train_demo.py at its end."""

import math
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import final

import tokenizers
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

# Windows evaluated at once; it bounds memory only.
_WINDOWS_PER_BATCH = 16


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """What the card says of the run besides what it measures."""

    command: str
    tokens_seen: int
    seconds: float
    training_stream: Tensor
    evaluation_stream: Tensor
    evaluation_bytes: int
    sequence_length: int
    device: torch.device


def write_card(folder: Path, record: TrainingRecord) -> str:
    """Measure the model in `folder` as it is published (float16 weights) and write its card."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    held_out = stream_loss(model, record.evaluation_stream, record.sequence_length)
    stride = max(1, len(record.training_stream) // len(record.evaluation_stream))
    training = stream_loss(model, record.training_stream, record.sequence_length, stride)
    frequencies = frequency_loss(record.training_stream, record.evaluation_stream, model.config.vocab_size)
    tokens_per_byte = (len(record.evaluation_stream) - 1) / record.evaluation_bytes
    parameters = model.num_parameters()
    config = model.config
    card = _CARD.format(
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        vocabulary_size=config.vocab_size,
        sequence_length=record.sequence_length,
        parameters=parameters,
        tokens_seen=record.tokens_seen,
        tokens_per_parameter=record.tokens_seen / parameters,
        passes=record.tokens_seen / len(record.training_stream),
        training_tokens=len(record.training_stream),
        evaluation_tokens=len(record.evaluation_stream),
        training_loss=training,
        held_out_loss=held_out,
        training_bits=training * tokens_per_byte / math.log(2),
        held_out_bits=held_out * tokens_per_byte / math.log(2),
        frequency_loss=frequencies,
        uniform_loss=math.log(config.vocab_size),
        command=record.command,
        hours=record.seconds / 3600,
        machine=machine(record.device),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        tokenizers=tokenizers.__version__,
    )
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    return card


@torch.no_grad()
def stream_loss(model: PreTrainedModel, stream: Tensor, sequence_length: int, stride: int = 1) -> float:
    """Return the mean loss over a token stream, in nats per token, summed in float64.

    The stream is cut into windows which share no target; the first token of a window is context
    only. With `stride` s, every s-th window is taken.
    """
    starts = range(0, len(stream) - 1 - sequence_length, sequence_length * stride)
    windows = torch.stack([stream[start : start + sequence_length + 1] for start in starts])
    total = 0.0
    for batch in windows.split(_WINDOWS_PER_BATCH):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        total += float(losses.double().sum())
    return total / (len(windows) * sequence_length)


def frequency_loss(training: Tensor, evaluation: Tensor, vocabulary_size: int) -> float:
    """Return the loss of guessing by token frequency alone (add-one smoothed), nats per token."""
    counts = torch.bincount(training, minlength=vocabulary_size).double() + 1.0
    return float(-(counts / counts.sum()).log()[evaluation[1:]].mean())


def machine(device: torch.device) -> str:
    """Return the kind of machine, such as `AMD EPYC (x86_64), 1 thread, float32`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    plural = "" if threads == 1 else "s"
    return f"{processor()} ({platform.machine()}), {threads} thread{plural}, float32"


def processor() -> str:
    """Return the processor's name from Linux, or what the platform says elsewhere."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "CPU"


_CARD = """\
# The demo model of guidedq

A Llama of {parameters:,} parameters that writes Python source and documentation. It exists to show
what quantization does, in seconds and without a download: it was trained far past its size's
optimum, and the longer a model is trained, the more rounding its weights costs (Kumar et al. 2024,
arXiv 2411.04330). It is of no other use.

| | |
|---|---|
| architecture | `LlamaForCausalLM`, {layers} layers, hidden {hidden_size}, intermediate \
{intermediate_size}, {heads} heads sharing {key_value_heads} key-value heads, tied embeddings |
| tokenizer | byte-level BPE, {vocabulary_size} tokens, `<|document|>` begins every document |
| longest sequence | {sequence_length} tokens |
| parameters | {parameters:,} (the tied embedding counted once), stored as float16 |
| tokens seen | {tokens_seen:,} ({passes:.1f} passes over {training_tokens:,} tokens) |
| tokens per parameter | {tokens_per_parameter:.0f} (about 20 are optimal for a given amount of \
computing: Hoffmann et al. 2022, arXiv 2203.15556) |

## Loss

Measured on the published float16 weights, computed in float32, windows of {sequence_length} tokens.

| text | nats per token | bits per byte |
|---|---|---|
| held-out modules (`evaluation`, {evaluation_tokens:,} tokens) | {held_out_loss:.4f} | \
{held_out_bits:.4f} |
| training modules (an even sample as large) | {training_loss:.4f} | {training_bits:.4f} |
| held-out, guessing by token frequency | {frequency_loss:.4f} | |
| held-out, guessing uniformly | {uniform_loss:.4f} | |

## Data

The standard library of Python {python}: the source of its modules without tests and tables, and
the topics of `pydoc_data.topics` (`guidedq.demo.demo_text`). A tenth of the modules, chosen by a
hash of their names, is held out for evaluation and another tenth for calibration; the model and
its tokenizer have seen neither. Another version of Python has other text: modules which it renamed
or split may put sentences seen in training on the held-out side.

## Licence

Weights: Apache-2.0. The text used in training is Python's source and documentation, licensed under
the Python Software Foundation License Version 2; none of it is contained in this folder.

## Training

    {command}

AdamW, warmup, constant rate, linear decay; {hours:.2f} hours on {machine}.
Python {python}, torch {torch}, transformers {transformers}, tokenizers {tokenizers}.
"""
