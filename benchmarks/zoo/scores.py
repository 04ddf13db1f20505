"""How far one model's outputs are from another's, and how good they are: numpy alone, sums in float64."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .entries import Arrays, Facts

TINY = float(np.finfo(np.float32).tiny)
"""Stands for a probability of zero."""


def logarithms(values: np.ndarray, facts: Facts) -> np.ndarray:
    """Logarithms of the distributions over the last axis."""
    wide = values.astype(np.float64)
    if facts.meaning == "probabilities":
        wide = np.log(np.maximum(wide, TINY))
    top = wide.max(-1, keepdims=True)
    return wide - top - np.log(np.exp(wide - top).sum(-1, keepdims=True))


def divergences(original: np.ndarray, other: np.ndarray, facts: Facts) -> np.ndarray:
    """KL(p || p_q) in nats of every distribution."""
    p, q = logarithms(original, facts), logarithms(other, facts)
    return (np.exp(p) * (p - q)).sum(-1)


def squared_errors(original: np.ndarray, other: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Half the relative squared error of every sample, of its real positions where there is a mask."""
    p, q = (values.astype(np.float64) for values in (original, other))
    if mask is not None:
        p, q = p * mask[..., None], q * mask[..., None]
    flat = (len(p), -1)
    return 0.5 * ((p - q).reshape(flat) ** 2).sum(1) / np.maximum((p.reshape(flat) ** 2).sum(1), TINY)


def agreeing(original: np.ndarray, other: np.ndarray, facts: Facts) -> np.ndarray:
    """What the two answer alike: the same likeliest class, or the same side of the threshold."""
    if facts.meaning == "values":
        return (original > facts.threshold) == (other > facts.threshold)
    return original.argmax(-1) == other.argmax(-1)


def score(output: np.ndarray, batch: Arrays, truth: Mapping[str, np.ndarray], facts: Facts) -> np.ndarray | None:
    """What each answer is worth; `None` where nobody knows."""
    match facts.task:
        case "classes":
            return output.argmax(-1) == truth["labels"]
        case "tokens":
            likely = np.take_along_axis(logarithms(output[:, :-1], facts), batch["input_ids"][:, 1:, None], -1)
            return -likely[..., 0]
        case "lines":
            lines = zip(output.argmax(-1), truth["text"], strict=True)
            return np.array([_read(steps) == [character for character in line if character] for steps, line in lines])
        case "pairs":
            mask = batch["attention_mask"][..., None]
            pooled = (output * mask).sum(1) / mask.sum(1)
            pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
            return (pooled[::2] * pooled[1::2]).sum(1)
        case _:
            return None


def summary(scores: np.ndarray, truth: Mapping[str, np.ndarray], facts: Facts) -> float:
    """Accuracy, nats a token, or Spearman's correlation of the similarities with the people's scores."""
    if facts.task != "pairs":
        return float(scores.mean())
    return float(np.corrcoef(_ranks(scores), _ranks(truth["scores"]))[0, 1])


def _read(steps: np.ndarray) -> list[int]:
    """The characters of a line: what repeats counts once, blanks (class 0) not at all."""
    changed = np.append(True, steps[1:] != steps[:-1])
    return [int(step) for step in steps[changed] if step]


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
