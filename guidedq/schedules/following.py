"""A model that follows a schedule: token by token as it generates, or over a whole text at once."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from guidedq.schedules.precision import precisions, set_precision
from guidedq.schedules.rules import LossRule, signal_of
from guidedq.schedules.schedule import Schedule


@contextmanager
def following(model: Any, schedule: Schedule) -> Generator[Follower]:
    """Let a nested language model follow a schedule within the block, whoever calls it: `generate`, or a loop.

    A call without a cache, or with an empty one, is a prompt; one with a cache brings further tokens. Texts of a batch
    have precisions of their own. Beams are followed as the texts that they were at the last step.

    Raises:
        ScheduleError: the model lacks a precision.
    """
    schedule.check(precisions(model))
    follower = Follower(model, schedule)
    called = getattr(model, "_orig_mod", model)  # of a torch.compile wrapper, whose `generate` passes it by
    before = called.register_forward_pre_hook(torch.compiler.disable(follower.before), with_kwargs=True)
    after = called.register_forward_hook(torch.compiler.disable(follower.after))
    try:
        yield follower
    finally:
        before.remove()
        after.remove()
        set_precision(model, precisions(model)[-1])


@final
class Follower:
    """Where a model stands in its schedule.

    Attributes:
        bits: Of every decoded token so far, mean over the batch.
    """

    def __init__(self, model: Any, schedule: Schedule) -> None:
        self._model, self._schedule = model, schedule
        self._signals: Tensor | None = None
        self.bits: list[float] = []

    def before(self, _: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Set the precision of what is about to be read."""
        tokens: Tensor = named["input_ids"] if named.get("input_ids") is not None else arguments[0]
        cache = named.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            self.bits, self._signals = [], None
            set_precision(self._model, self._schedule.prefill)
            return
        steps = torch.arange(tokens.shape[1], device=tokens.device) + len(self.bits)
        signals = None if self._signals is None else self._signals[:, None].expand(tokens.shape)
        bits = self._schedule.rule.bits(steps.expand(tokens.shape), tokens, signals)
        self.bits += bits.float().mean(0).tolist()
        alike = bool((bits == bits.flatten()[0]).all())
        set_precision(self._model, int(bits.flatten()[0]) if alike else bits)

    def after(self, _: Any, arguments: tuple[Any, ...], output: Any) -> None:
        """Keep what the rule will ask of these logits."""
        rule = self._schedule.rule
        if isinstance(rule, LossRule) and rule.signal:
            self._signals = signal_of(rule.signal, output.logits[:, -1])


def followed(
    model: Any, tokens: Int64[Tensor, "text token"], schedule: Schedule
) -> tuple[Float[Tensor, "text token vocabulary"], Int64[Tensor, "text token"]]:
    """What a model says of whole texts when each token is read as the schedule has it, the first being token 0.

    Exactly what token-by-token decoding gives, keys and values of earlier tokens included, but all at once: a rule that
    looks at logits is asked again until nothing changes. What it sees at a token depends on the tokens before alone, so
    each round settles at least one more, and in practice a few settle all.

    Returns:
        The logits, and the bits of every token.
    """
    rule, steps = schedule.rule, torch.arange(tokens.shape[1]).expand(tokens.shape)
    name = rule.signal if isinstance(rule, LossRule) else ""
    signals = torch.full(tokens.shape, torch.nan) if name else None
    bits = rule.bits(steps, tokens, signals)
    rounds = tokens.shape[1] if name else 1
    while True:
        set_precision(model, bits)
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits.float()
        chosen = rule.bits(steps, tokens, signals_before(name, logits)) if name else bits
        rounds -= 1
        if not rounds or torch.equal(chosen, bits):  # at a threshold, rounding may turn a token to and fro
            return logits, bits
        bits = chosen


def signals_before(name: str, logits: Float[Tensor, "text token vocabulary"]) -> Float[Tensor, "text token"]:
    """A signal of the logits before each token, NaN at the first."""
    none = torch.full((len(logits), 1), torch.nan, device=logits.device)
    return torch.cat((none, signal_of(name, logits[:, :-1])), dim=1)
