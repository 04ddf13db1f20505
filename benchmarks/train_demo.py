"""Train the demo model that ships in guidedq/demo/model.

    python benchmarks/train_demo.py --out DIR --minutes 75
    python benchmarks/train_demo.py --out DIR --tokens 20000000 --checkpoints 2000000,5000000
    python benchmarks/train_demo.py --out DIR --tokens 20000000 --checkpoints 2000000,5000000 --anneal

The model is small and is trained far past its size's optimum, which makes it fragile under
quantization. The text is the standard library of the running Python (guidedq.demo.demo_text).

DIR/model holds the newest weights as a Hugging Face folder (float16), refreshed at every save and
final at the end; DIR/tokens-N holds the weights at each token count of --checkpoints, before the
learning rate's decay, and with --anneal DIR/annealed-N what the same run would have ended with, had
it been asked for N tokens: a copy leaves it where its own decay would begin. DIR/state.safetensors
is what a killed run goes on from: the same command continues it. With --tokens, the same seed on
the same machine gives the same weights.
"""

import argparse
import copy
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast, final

import torch
from demo_card import TrainingRecord, write_card
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from guidedq.demo import DemoSplit, demo_text

# One token marks where a document begins; as the end of the one before, it also ends generation.
DOCUMENT_TOKEN = "<|document|>"
DOCUMENT_TOKEN_ID = 0  # special tokens come first
VOCABULARY_SIZE = 1024
SEQUENCE_LENGTH = 256

# AdamW as usual for small language models (the second decay of Brown et al. 2020, appendix B).
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
GRADIENT_NORM_LIMIT = 1.0
WARMUP_TOKENS = 500_000
# Warmup, stable, decay (Hu et al. 2024, arXiv 2404.06395): the rate falls linearly to zero over
# this last fraction of the run, so a run that is bounded by time ends as well as one by tokens.
DECAY_FRACTION = 0.25

SAVE_EVERY_SECONDS = 120.0
REPORT_EVERY_SECONDS = 30.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one training run is asked to do; exactly one of `minutes` and `tokens` is set."""

    out: Path
    minutes: float | None
    tokens: int | None
    checkpoints: tuple[int, ...]
    anneal: bool
    seed: int
    batch_size: int
    learning_rate: float
    threads: int
    hidden_size: int
    intermediate_size: int
    layers: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come: optimizer steps, and seconds spent over all its sessions."""

    step: int
    seconds: float


def main() -> None:
    """Train, write the model and its card."""
    settings = parse_settings()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings.out.mkdir(parents=True, exist_ok=True)

    tokenizer_folder = settings.out / "tokenizer"
    tokenizer = load_or_train_tokenizer(tokenizer_folder)
    model = LlamaForCausalLM(model_config(settings))
    cast(torch.nn.Module, model).to(device)  # transformers' own annotation of `to` hides its arguments
    tokens = token_stream(tokenizer, "train")
    report(f"{model.num_parameters():,} parameters, {len(tokens):,} tokens of text, {device}")

    progress = train(settings, model, tokens.to(device))
    write_model(model, tokenizer_folder, settings.out / "model")
    record = TrainingRecord(
        command=published_command(settings),
        tokens_seen=progress.step * settings.batch_size * SEQUENCE_LENGTH,
        seconds=progress.seconds,
        training_stream=tokens,
        evaluation_stream=token_stream(tokenizer, "evaluation"),
        evaluation_bytes=sum(len(text.encode()) for text in demo_text("evaluation")),
        sequence_length=SEQUENCE_LENGTH,
        device=device,
    )
    report(write_card(settings.out / "model", record))


def train(settings: Settings, model: LlamaForCausalLM, stream: Tensor) -> Progress:
    """Train `model` in place, from its last saved state if there is one, to the asked end."""
    optimizer = make_optimizer(model, settings.learning_rate)
    state_file = settings.out / "state.safetensors"
    tokenizer_folder = settings.out / "tokenizer"
    progress = Progress(step=0, seconds=0.0)
    if state_file.exists():
        progress = load_state(state_file, model, optimizer)
        report(f"going on from step {progress.step:,}")
    tokens_per_step = settings.batch_size * SEQUENCE_LENGTH
    begin = time.monotonic() - progress.seconds
    saved = reported = time.monotonic()
    reported_step = progress.step
    while (done := fraction_done(settings, progress)) < 1.0:
        rate = settings.learning_rate * rate_factor(progress.step * tokens_per_step, done)
        windows = sample_windows(stream, settings.batch_size, (settings.seed, progress.step))
        loss = training_step(model, optimizer, windows, rate)
        now = time.monotonic()
        progress = Progress(step=progress.step + 1, seconds=now - begin)
        tokens_seen = progress.step * tokens_per_step

        for count in settings.checkpoints:
            if settings.anneal and 0 <= tokens_seen - (1.0 - DECAY_FRACTION) * count < tokens_per_step:
                annealed = anneal(settings, model, optimizer, stream, progress.step, count)
                write_model(annealed, tokenizer_folder, settings.out / f"annealed-{count}")
            if tokens_seen - tokens_per_step < count <= tokens_seen:
                write_model(model, tokenizer_folder, settings.out / f"tokens-{count}")
        if now - reported > REPORT_EVERY_SECONDS:
            speed = (progress.step - reported_step) * tokens_per_step / (now - reported)
            report(f"{done:6.1%} {tokens_seen:,} tokens, loss {float(loss):.3f}, {speed:,.0f}/s")
            reported, reported_step = now, progress.step
        if now - saved > SAVE_EVERY_SECONDS:
            save_state(state_file, model, optimizer, progress)
            write_model(model, tokenizer_folder, settings.out / "model")
            saved = now
    save_state(state_file, model, optimizer, progress)
    return progress


def anneal(
    settings: Settings,
    model: LlamaForCausalLM,
    optimizer: torch.optim.AdamW,
    stream: Tensor,
    step: int,
    tokens: int,
) -> LlamaForCausalLM:
    """Return a copy of `model` trained on from `step` to `tokens`, on the text that the run itself goes on with."""
    branch = copy.deepcopy(model)
    mine = make_optimizer(branch, settings.learning_rate)
    mine.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    tokens_per_step = settings.batch_size * SEQUENCE_LENGTH
    while (seen := step * tokens_per_step) < tokens:
        rate = settings.learning_rate * rate_factor(seen, seen / tokens)
        training_step(branch, mine, sample_windows(stream, settings.batch_size, (settings.seed, step)), rate)
        step += 1
    return branch


def training_step(model: LlamaForCausalLM, optimizer: torch.optim.AdamW, windows: Tensor, rate: float) -> Tensor:
    """Take one optimizer step on `windows` (batch, length + 1); return its loss, nats per token."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = mean_loss(model, windows)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM_LIMIT)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def mean_loss(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """Return the mean next-token loss over `windows` (batch, length + 1), in nats per token."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def fraction_done(settings: Settings, progress: Progress) -> float:
    """Return the done fraction of the run, by time or by tokens."""
    if settings.minutes is not None:
        return progress.seconds / (60.0 * settings.minutes)
    assert settings.tokens is not None, "parse_settings asks for one of the two"
    return progress.step * settings.batch_size * SEQUENCE_LENGTH / settings.tokens


def rate_factor(tokens_seen: int, done: float) -> float:
    """Return the learning rate over its peak: warmup by tokens, then flat, then linear to zero."""
    return min(1.0, tokens_seen / WARMUP_TOKENS, (1.0 - done) / DECAY_FRACTION)


def sample_windows(stream: Tensor, batch_size: int, key: tuple[int, int]) -> Tensor:
    """Return windows (batch, length + 1) at places drawn from `key`, (seed, step)."""
    seed, step = key
    generator = torch.Generator().manual_seed((seed << 32) + step)
    starts = torch.randint(len(stream) - SEQUENCE_LENGTH, (batch_size, 1), generator=generator)
    windows = stream[(starts + torch.arange(SEQUENCE_LENGTH + 1)).to(stream.device)]
    windows[::2, 0] = DOCUMENT_TOKEN_ID  # half begin as a lone text does, with its mark
    return windows


def make_optimizer(model: LlamaForCausalLM, learning_rate: float) -> torch.optim.AdamW:
    """Return AdamW with weight decay on the matrices only."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, fused=True)


def model_config(settings: Settings) -> LlamaConfig:
    """Return the architecture: a Llama with grouped queries and tied embeddings."""
    return LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=SEQUENCE_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=DOCUMENT_TOKEN_ID,
        eos_token_id=DOCUMENT_TOKEN_ID,
    )


def load_or_train_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the run's byte-level BPE tokenizer, training it on the training text when new."""
    if folder.exists():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[DOCUMENT_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(demo_text("train"), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{DOCUMENT_TOKEN} $A",
        pair=f"{DOCUMENT_TOKEN} $A {DOCUMENT_TOKEN} $B",
        special_tokens=[(DOCUMENT_TOKEN, DOCUMENT_TOKEN_ID)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=DOCUMENT_TOKEN,
        eos_token=DOCUMENT_TOKEN,
        model_max_length=SEQUENCE_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    return fast


def token_stream(tokenizer: PreTrainedTokenizerFast, split: DemoSplit) -> Tensor:
    """Return all documents of a split as one row of token ids, each after its document mark."""
    rows = tokenizer.backend_tokenizer.encode_batch(demo_text(split))
    return torch.tensor([token for row in rows for token in row.ids])


def write_model(model: LlamaForCausalLM, tokenizer_folder: Path, folder: Path) -> None:
    """Write a Hugging Face folder with the weights in float16; `model` stays as it is."""
    half = LlamaForCausalLM(model.config).half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(folder)
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone; packages are read by everyone


def save_state(file: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW, progress: Progress) -> None:
    """Write all that the run needs to go on, in one step, so that a kill leaves a whole file."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"parameter/{name}"] = parameter.detach()
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    counters = {"step": str(progress.step), "seconds": str(progress.seconds)}
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, metadata=counters)
    partial.replace(file)


def load_state(file: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW) -> Progress:
    """Fill `model` and `optimizer` from a saved state; return how far that run had come."""
    with safe_open(file, framework="pt") as stored:
        counters = stored.metadata()
        step = int(counters["step"])
        for name, parameter in model.named_parameters():
            with torch.no_grad():
                parameter.copy_(stored.get_tensor(f"parameter/{name}"))
            optimizer.state[parameter] = {
                moment: stored.get_tensor(f"{moment}/{name}").to(parameter.device)
                for moment in ("exp_avg", "exp_avg_sq")
            } | {"step": torch.tensor(float(step), device=parameter.device)}
    return Progress(step=step, seconds=float(counters["seconds"]))


def parse_settings() -> Settings:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="train for this long")
    length.add_argument("--tokens", type=int, help="train on this many tokens")
    parser.add_argument("--checkpoints", type=token_counts, default=(), metavar="N,N,...")
    parser.add_argument("--anneal", action="store_true", help="also end a copy of the run at each checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8, help="sequences in a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="at its peak")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden-size", type=int, default=96)
    parser.add_argument("--intermediate-size", type=int, default=200)
    parser.add_argument("--layers", type=int, default=3)
    return Settings(**vars(parser.parse_args()))


def token_counts(text: str) -> tuple[int, ...]:
    """Read `2000000,5000000`."""
    return tuple(int(count) for count in text.split(","))


def published_command(settings: Settings) -> str:
    """Return the command of this run with the folder's place left open."""
    arguments = ["DIR" if word == str(settings.out) else word for word in sys.argv[1:]]
    return shlex.join(["python", "benchmarks/train_demo.py", *arguments])


def report(line: str) -> None:
    """Show progress on stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
