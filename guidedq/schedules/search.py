"""Find the schedule of an average: candidates of every kind, fitted on some texts and measured on others.

What a token's width costs is measured: the divergence at its place when the whole text is read at that width. A
loss-aware rule sees a class of tokens or a range of a signal at a time; each of these cells gets the width at which its
mean divergence plus a price for bits is least, and the price is the one that meets the average (Everett 1963).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from guidedq.errors import ScheduleError
from guidedq.schedules.following import followed, signals_before
from guidedq.schedules.precision import set_precision
from guidedq.schedules.rules import SIGNALS, AbstractRule, LinearRule, LossRule, StepRule, constant_rule
from guidedq.schedules.schedule import Schedule

TEXTS_AT_ONCE = 8
RANGES, CLASSES = 12, 24
"""Of a signal, and of tokens, where it is alone; a dozen cells come within a percent of what a hundred gain."""
PAIRED_RANGES, PAIRED_CLASSES = 6, 8
SETTLING_TEXTS = 16
"""On which a rule that looks at logits is fitted the second time."""
PRIOR_TOKENS = 4.0
"""A token's mean divergence is drawn to the mean of all as if so many more had been seen."""
REPLICATES = 1000
INTERVAL = (5.0, 95.0)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A schedule and what it does to texts that it was not fitted on.

    Attributes:
        name: Of its kind.
        schedule: As it would be followed.
        average_bits: Of the texts' tokens, as they were read.
        kl: Mean divergence from the original, nats per token, with its 90% interval over texts.
    """

    name: str
    schedule: Schedule
    average_bits: float
    kl: float
    kl_low: float
    kl_high: float

    @property
    def is_loss_aware(self) -> bool:
        """Whether bits follow the loss rather than the place in the text."""
        return isinstance(self.schedule.rule, LossRule)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What each width costs at each token of some texts, and what is known there beforehand.

    Attributes:
        tokens: The texts.
        kl: Divergence at every token when all are read at one width.
        signals: By name, of the logits before each token.
        widths: Rising.
    """

    tokens: Int64[Tensor, "text token"]
    kl: Float[Tensor, "width text token"]
    signals: dict[str, Float[Tensor, "text token"]]
    widths: tuple[int, ...]


def costs_of(
    model: Any,
    original: Callable[[Tensor], Tensor],
    tokens: Int64[Tensor, "text token"],
    widths: tuple[int, ...],
    average: float,
) -> Costs:
    """Read texts at every width.

    Args:
        model: A nested model.
        original: From tokens to the original's logits.
        tokens: The texts.
        widths: The model's.
        average: Bits; signals are those of the width nearest to it.
    """
    kl = torch.empty(len(widths), *tokens.shape)
    signals = {name: torch.empty(tokens.shape) for name in SIGNALS}
    nearest = min(widths, key=lambda width: abs(width - average))
    for part, logits in _original(original, tokens):
        for number, width in enumerate(widths):
            set_precision(model, width)
            with torch.no_grad():
                found = model(input_ids=tokens[part], use_cache=False).logits.float()
            kl[number, part] = divergence(logits, found)
            if width == nearest:
                for name in SIGNALS:
                    signals[name][part] = signals_before(name, found)
    return Costs(tokens=tokens, kl=kl, signals=signals, widths=widths)


def candidates(
    model: Any, costs: Costs, average: float, vocabulary: int, signals: Sequence[str] = SIGNALS
) -> dict[str, Schedule]:
    """Schedules of every kind whose average is, on these texts, `average` bits at most.

    A rule that looks at logits changes them: it is fitted once more to what it saw on some texts.

    Args:
        model: The nested model.
        costs: Of the texts.
        average: Bits.
        vocabulary: Tokens that there are.
        signals: Those that rules may look at.
    """
    widths, length = costs.widths, costs.tokens.shape[1]
    constant = constant_rule(average, widths)
    rules: dict[str, AbstractRule] = {"constant": constant}
    if constant.low < constant.high and 0 < constant.share < 1:
        rules["step"] = _step(constant.high, constant.low, average, length)
        rules["step, late"] = _step(constant.low, constant.high, average, length)
    if widths[0] < average < widths[-1]:
        rules["step, widest first"] = _step(widths[-1], widths[0], average, length)
        rules["linear"] = _linear(widths, average, length)
        for name in signals:
            rules[name] = _settled(model, costs, average, name, (), RANGES)
        rules["token"] = _fitted(costs, average, "", _classes(costs, vocabulary, CLASSES), 1)
        if "impurity" in signals:
            paired = _classes(costs, vocabulary, PAIRED_CLASSES)
            rules["token and impurity"] = _settled(model, costs, average, "impurity", paired, PAIRED_RANGES)
    return {name: Schedule(prefill=widths[-1], rule=rule) for name, rule in rules.items()}


def measured(
    model: Any,
    original: Callable[[Tensor], Tensor],
    tokens: Int64[Tensor, "text token"],
    schedules: dict[str, Schedule],
    *,
    seed: int,
) -> tuple[Candidate, ...]:
    """Read texts by each schedule and compare with the original.

    Args:
        model: A nested model.
        original: From tokens to the original's logits.
        tokens: Texts that the schedules were not fitted on.
        schedules: By name.
        seed: Of the bootstrap over texts.
    """
    kl = {name: torch.empty(tokens.shape) for name in schedules}
    bits = {name: torch.empty(tokens.shape) for name in schedules}
    for part, logits in _original(original, tokens):
        for name, schedule in schedules.items():
            found, read = followed(model, tokens[part], schedule)
            kl[name][part], bits[name][part] = divergence(logits, found), read.float()
    draws = np.random.default_rng(seed).integers(0, len(tokens), (REPLICATES, len(tokens)))
    result: list[Candidate] = []
    for name, schedule in schedules.items():
        by_text = kl[name].double().mean(1).numpy()
        low, high = np.percentile(by_text[draws].mean(1), INTERVAL)
        result.append(
            Candidate(
                name=name,
                schedule=schedule,
                average_bits=float(bits[name].mean()),
                kl=float(by_text.mean()),
                kl_low=float(low),
                kl_high=float(high),
            )
        )
    return tuple(result)


def divergence(original: Float[Tensor, "*n vocabulary"], found: Float[Tensor, "*n vocabulary"]) -> Float[Tensor, "*n"]:
    """KL(p || q) at every token, in nats."""
    p, q = torch.log_softmax(original, -1), torch.log_softmax(found, -1)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0.0)


def _original(original: Callable[[Tensor], Tensor], tokens: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(tokens), TEXTS_AT_ONCE):
        part = slice(start, start + TEXTS_AT_ONCE)
        yield part, original(tokens[part])


def _step(first: int, then: int, average: float, length: int) -> StepRule:
    """Bits that change once, where texts of this length keep to the average."""
    share = (average - then) / (first - then)
    start = int(share * length) if first > then else length - int((1 - share) * length)
    return StepRule(parts=((0, first), (start, then)) if start > 0 else ((0, then),))


def _linear(widths: Sequence[int], average: float, length: int) -> LinearRule:
    """From the widest to the narrowest over as many tokens as keep to the average."""
    steps = torch.arange(length)
    low, high = 1, 64 * length
    while low < high:
        tokens = (low + high + 1) // 2
        rule = LinearRule(first=widths[-1], last=widths[0], tokens=tokens, widths=tuple(widths))
        if float(rule.bits(steps, steps, None).float().mean()) <= average:
            low = tokens
        else:
            high = tokens - 1
    return LinearRule(first=widths[-1], last=widths[0], tokens=low, widths=tuple(widths))


def _classes(costs: Costs, vocabulary: int, count: int) -> tuple[int, ...]:
    """Tokens in classes of about equal frequency, by what the narrowest width costs beyond the widest after them."""
    gain, tokens = (costs.kl[0] - costs.kl[-1]).flatten().double(), costs.tokens.flatten()
    seen = torch.bincount(tokens, minlength=vocabulary).double()
    total = torch.zeros(vocabulary, dtype=torch.float64).index_add_(0, tokens, gain)
    mean = (total + PRIOR_TOKENS * gain.mean()) / (seen + PRIOR_TOKENS)
    order = mean.argsort(stable=True)
    before = torch.cumsum(seen[order], 0) - seen[order] / 2
    numbers = torch.empty(vocabulary, dtype=torch.int64)
    numbers[order] = (before / seen.sum() * count).long().clamp(0, count - 1)
    return tuple(numbers.tolist())


def _settled(model: Any, costs: Costs, average: float, signal: str, classes: tuple[int, ...], ranges: int) -> LossRule:
    """A rule fitted to the signals of one width, then to those that it sees when it is followed."""
    rule = _fitted(costs, average, signal, classes, ranges)
    some = costs.tokens[:SETTLING_TEXTS]
    logits, _ = followed(model, some, Schedule(prefill=costs.widths[-1], rule=rule))
    seen = replace(costs, tokens=some, kl=costs.kl[:, : len(some)], signals={signal: signals_before(signal, logits)})
    return _fitted(seen, average, signal, classes, ranges)


def _fitted(costs: Costs, average: float, signal: str, classes: tuple[int, ...], ranges: int) -> LossRule:
    """The widths of all cells at which the mean divergence is least within the average."""
    edges: tuple[float, ...] = ()
    if signal:
        known = costs.signals[signal][:, 1:].flatten().double()
        places = torch.linspace(0, 1, ranges + 1, dtype=torch.float64)[1:-1]
        edges = tuple(dict.fromkeys(known.quantile(places).float().tolist()))
    rows = max(classes, default=0) + 1
    blank = LossRule(
        signal=signal, edges=edges, table=((costs.widths[-1],) * (len(edges) + 1),) * rows, classes=classes
    )
    cells = blank.class_of(costs.tokens) * (len(edges) + 1)
    cells = (cells + blank.range_of(costs.tokens, costs.signals.get(signal))).flatten()
    count = rows * (len(edges) + 1)
    sums = torch.stack([torch.zeros(count).double().index_add_(0, cells, kl.flatten().double()) for kl in costs.kl])
    chosen = least_within(sums, torch.bincount(cells, minlength=count).double(), costs.widths, average)
    return _merged(replace(blank, table=tuple(tuple(row) for row in chosen.view(rows, -1).tolist())))


def _merged(rule: LossRule) -> LossRule:
    """The same rule without edges that part ranges of the same bits."""
    columns = list(zip(*rule.table, strict=True))
    kept = [number for number in range(len(rule.edges)) if columns[number] != columns[number + 1]]
    table = zip(*(columns[number] for number in (*kept, len(columns) - 1)), strict=True)
    return replace(rule, edges=tuple(rule.edges[number] for number in kept), table=tuple(table))


def least_within(
    sums: Float[Tensor, "width cell"], counts: Float[Tensor, "cell"], widths: Sequence[int], average: float
) -> Int64[Tensor, "cell"]:
    """The width of each cell, of least total cost, whose mean over all tokens is `average` at most.

    By a price for bits, found by bisection; then single cells are widened while the average allows, best first.

    Raises:
        ScheduleError: even the narrowest width is more.
    """
    bits = torch.tensor(widths, dtype=torch.float64)
    room = average * float(counts.sum()) + 1e-9
    if room < float(bits[0] * counts.sum()):
        raise ScheduleError(f"an average of {average:g} bits is below the narrowest width, {widths[0]}.")

    def at(price: float) -> Tensor:
        return (sums + price * bits[:, None] * counts).argmin(0)

    low, high = 0.0, 1.0
    while float((bits[at(high)] * counts).sum()) > room:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float((bits[at(middle)] * counts).sum()) > room else (low, middle)
    chosen, every = at(high), torch.arange(len(counts))
    while True:
        wider = (chosen + 1).clamp(max=len(widths) - 1)
        more = (bits[wider] - bits[chosen]) * counts
        gain = sums[chosen, every] - sums[wider, every]
        left = room - float((bits[chosen] * counts).sum())
        worth = torch.where((more > 0) & (more <= left) & (gain > 0), gain / more, -1.0)
        if float(worth.max()) <= 0:
            return torch.tensor(widths)[chosen]
        best = int(worth.argmax())
        chosen[best] = wider[best]
