"""Tokens a second of nested language models at each of their precisions, and under a schedule.

    python benchmarks/nested_decoding.py

The models have the shapes of known ones and random codes, on whose values no kernel's time depends. Each precision, and
the schedule, decode some tokens after a prompt, in turn, on one thread, round after round. What counts is the median
time of each token, mean over the tokens, and beside it the least. Writes `results/nested_decoding.json`, whose table
`benchmarks/nested.py` puts into `docs/nested.md`.
"""

from __future__ import annotations

import argparse
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from records import Record, Row
from torch import nn

import guidedq
from guidedq.artifacts.nested_segment import NestedSegment
from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.backends.packed_torch.modules import PackedEmbedding, PackedLinear
from guidedq.backends.packed_torch.native.library import library
from guidedq.backends.packed_torch.planes import PlaneWeight
from guidedq.quant.grid import Grid
from guidedq.quant.nested import NestedFormat
from guidedq.schedules.following import following
from guidedq.schedules.schedule import parse_schedule

WIDTHS, GROUP = (3, 4, 5), 64
PROMPT = torch.arange(1, 17)[None]
NEW_TOKENS, ROUNDS = 16, 8
MODES = ("5", "4", "3", "prefill=5,decode=4,3@8")
"""As `generate --schedule` takes them; the last reads half of the tokens at 4 bits, half at 3."""
SHAPES = {
    "SmolLM2-135M": ((576, 1536), (9, 3), 30, 49152),
    "TinyLlama-1.1B, 4 of its 22 layers": ((2048, 5632), (32, 4), 4, 32000),
}
"""Widths of the stream and within the MLP, heads of queries and of keys, layers, vocabulary."""
OUT = Path("benchmarks/results/nested_decoding.json")
HEAD = "| shape | precision | tokens a second | times as fast as 5 bits | least milliseconds | beside 5 bits |"


def main() -> None:
    """Measure, print, write."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    kernels = library()
    sets = kernels.instruction_sets[0] if kernels is not None else "no kernels"
    versions = {"torch": torch.__version__, "guidedq": guidedq.__version__}
    OUT.unlink(missing_ok=True)
    record = Record(OUT, versions=versions, instruction_set=sets, seed=0, load=os.getloadavg())
    for name in SHAPES:
        model = nested_model(name)
        found: dict[str, list[list[float]]] = {mode: [] for mode in MODES}
        for _ in range(ROUNDS):
            for mode, rounds in found.items():
                rounds.append(decode(model, following(model, parse_schedule(mode, WIDTHS))))
        for mode, rounds in found.items():
            tokens = list(zip(*rounds, strict=True))  # all rounds of each token
            row: Row = {"model": name, "mode": mode}
            row |= {"seconds": mean(map(median, tokens)), "least": mean(map(min, tokens))}
            print(row, flush=True)
            record.add(row)


def nested_model(name: str) -> Any:
    """A model of that shape with nested weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    (hidden, inner), (queries, keys), layers, vocabulary = SHAPES[name]
    shape: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
    }
    heads: dict[str, Any] = {"num_attention_heads": queries, "num_key_value_heads": keys}
    model: Any = LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=True)).eval()
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            linear = [(name, child) for name, child in part.named_children() if isinstance(child, nn.Linear)]
            for name, child in linear:
                setattr(part, name, PackedLinear(random_nested(child.out_features, child.in_features), None))
    tied = random_nested(vocabulary, hidden)
    model.model.embed_tokens, model.lm_head = PackedEmbedding(tied), PackedLinear(tied, None)
    return model


def random_nested(rows: int, columns: int) -> PlaneWeight:
    """Random codes, with scales that keep the numbers of a layer small."""
    groups, widest = columns // GROUP, WIDTHS[-1]
    grid = Grid(
        scales=(torch.rand(rows, groups) / (2**widest * columns**0.5)).half(),
        zero_points=torch.full((rows, groups), 2 ** (widest - 1), dtype=torch.uint8),
    )
    segment = NestedSegment(
        format=NestedFormat(widths=WIDTHS, precision=widest),
        rows=torch.arange(rows),
        codes=torch.randint(0, 2**widest, (rows, columns), dtype=torch.uint8),
        grid=grid,
        ratios=torch.ones(len(WIDTHS) - 1).half(),
        shifts=torch.full((len(WIDTHS) - 1, rows), 4, dtype=torch.uint8),
    )
    weight = QuantizedWeight(name="random", shape=(rows, columns), segments=(segment,))
    return PlaneWeight(weight, (rows, columns), transposed=False)


@torch.no_grad()
def decode(model: Any, followed: AbstractContextManager[Any]) -> list[float]:
    """Seconds of each token after the prompt."""
    seconds: list[float] = []
    with followed:
        outputs = model(input_ids=PROMPT, use_cache=True)
        for _ in range(NEW_TOKENS):
            chosen = outputs.logits[:, -1:].argmax(-1)
            begun = time.perf_counter()
            outputs = model(input_ids=chosen, past_key_values=outputs.past_key_values, use_cache=True)
            seconds.append(time.perf_counter() - begun)
    return seconds


def section(record: Record) -> str:
    """The table as a section of `docs/nested.md`."""
    lines: list[str] = []
    for row in record.rows:
        widest = next(one for one in record.rows if (one["model"], one["mode"]) == (row["model"], MODES[0]))
        mode = row["mode"] if "=" in row["mode"] else f"{row['mode']} bits"
        speeds = [f"{1 / row['seconds']:.1f}", f"{widest['seconds'] / row['seconds']:.2f}"]
        speeds += [f"{1e3 * row['least']:.1f}", f"{row['least'] / widest['least']:.2f}"]
        lines.append(f"| {' | '.join([row['model'], mode, *speeds])} |")
    facts = f"{record.content['instruction_set']}, load {record.content['load'][0]:.1f} at the start"
    told = (
        "Whole models with random codes decode on one thread (`benchmarks/nested_decoding.py`,\n"
        f"{facts}). A token's time also has what no precision changes: the sums of inputs, attention, norms,\n"
        "and transformers' own Python. In a model with narrow layers that is most of it."
    )
    return f"\n{told}\n\n" + "\n".join([HEAD, "|---|---|---|---|---|---|", *lines]) + "\n"


if __name__ == "__main__":
    main()
