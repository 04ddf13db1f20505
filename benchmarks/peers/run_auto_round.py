"""auto-round: SignRound with 200 iterations; widths chosen per layer by AutoScheme if BITS is no whole number.

OPTION: the iterations; a second one: the widths that AutoScheme chooses from.
"""

from __future__ import annotations

import json

import torch
from harness import Result, Task, linears, load, run, stored_bytes, tensors_in, tokenizer

SCHEMES = ("W2A16G64", "W3A16G64", "W4A16G64", "W8A16G64")


def quantize(task: Task) -> Result:
    """Tune, save, read the packed tensors back."""
    from auto_round import AutoRound, AutoScheme

    model, words = load(task.model), tokenizer(task.model)
    iterations = int(task.options[0]) if task.options else 200
    task.scratch.mkdir(parents=True, exist_ok=True)
    data = task.scratch.parent / "calibration.json"
    texts = [{"text": words.decode(sequence, skip_special_tokens=True)} for sequence in task.tokens]
    data.write_text(json.dumps(texts + texts))  # decoded text may come out a little shorter than it was
    count, length = task.tokens.shape
    whole = task.bits == int(task.bits)
    schemes = tuple(task.options[1].split(",")) if len(task.options) > 1 else SCHEMES
    scheme = (
        f"W{int(task.bits)}A16G64"
        if whole
        else AutoScheme(
            avg_bits=task.bits, options=schemes, nsamples=32, seqlen=length, batch_size=4, dataset=str(data)
        )
    )
    tuner = AutoRound(
        model, words, scheme=scheme, iters=iterations, nsamples=count, seqlen=length - 8, dataset=str(data),
        batch_size=4, device_map="cpu", enable_torch_compile=False,
    )  # fmt: skip
    tuner.quantize_and_save(str(task.scratch), format="auto_round")
    tensors = dict(tensors_in(task.scratch))
    again = load(task.model)
    layers = linears(again)
    for name, layer in layers.items():
        if f"{name}.qweight" in tensors:
            layer.weight.data = unpacked(tensors, name, layer.weight)
    size = stored_bytes(tensors.items(), layers)
    return Result(model=again, bytes=size, settings=f"{'' if whole else 'AutoScheme, '}{iterations} iterations")


def unpacked(tensors: dict[str, torch.Tensor], name: str, original: torch.Tensor) -> torch.Tensor:
    """GPTQ's layout: codes packed along the inputs, zero points along the outputs, both as bit streams of words.

    Zero points are stored as they are or less one; what is nearer to the original weight is taken.
    """
    outputs, inputs = original.shape
    words, zeros, scales = (tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales"))
    bits = words.shape[0] * 32 // inputs
    codes = fields(words, bits)[:inputs].float()
    points = fields(zeros.t(), bits).t()[:, :outputs].float()
    group = torch.arange(inputs) // -(-inputs // scales.shape[0])
    candidates = [((codes - (points + less)[group]) * scales.float()[group]).t() for less in (0, 1)]
    return min(candidates, key=lambda weight: float((weight - original).square().sum())).contiguous()


def fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Fields of so many bits, little end first, from columns of 32-bit words."""
    shifts = torch.arange(32)[None, :, None]
    stream = ((words.long() & 0xFFFFFFFF)[:, None, :] >> shifts & 1).reshape(-1, words.shape[1])
    count = len(stream) // bits
    places = 2 ** torch.arange(bits)[None, :, None]
    return (stream[: count * bits].reshape(count, bits, -1) * places).sum(1)


if __name__ == "__main__":
    run("auto-round", quantize)
