"""Measure a quantized model against its original: divergence, loss, agreement, accuracy.

Units. A language model's unit is one real (unmasked) position, and each predicts a distribution; its losses are taken
where the next token is known. A classifier's unit is one sample. For any other output it is one sample too, and the
divergence is half the squared output error over the squared output. Sums are accumulated in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from guidedq.artifacts.forecast import Measurement
from guidedq.artifacts.samples import SampleSet
from guidedq.errors import CalibrationError
from guidedq.ir.joint_output import inverse_sizes
from guidedq.ir.model import Objective
from guidedq.ir.program import Batch
from guidedq.memory import give_back
from guidedq.progress import Progress

CHUNK_ELEMENTS = 1 << 20
"""Logits that are turned into probabilities at once: 4 MB a copy, so that copies are small beside the logits."""
NO_LABEL = -1
"""Stands where a label is not known; any negative label is read so."""
TOKEN_INPUTS = ("decoder_input_ids", "input_ids")
"""The inputs that hold the tokens a language model predicts, the first that is there."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Sums:
    """What one sample adds: sums over its units, and over its labels where `labels` are known."""

    kl: float
    units: int
    agreeing: float
    entropy: float | None = None
    loss_before: float = 0.0
    loss_after: float = 0.0
    losses: int = 0
    right_before: int = 0
    right_after: int = 0
    labels: int = 0
    regret: float | None = None
    uncertainty: float | None = None


USUAL_BATCH = 32
USUAL_TOKENS = 2048
USUAL_LOGITS = 1 << 22
"""Samples, and tokens, run at once where the outputs are small."""


def measure(
    samples: SampleSet,
    objective: Objective,
    *,
    predict_original: Callable[[Batch], Tensor],
    predict_quantized: Callable[[Batch], Tensor],
    batch_size: int | None = None,
    progress: Progress,
) -> Measurement:
    """Run both models over the samples and compare their outputs.

    KL is that of the quantized model's distribution from the original's, KL(p || p_q), in nats. A language model's loss
    is the cross-entropy of the next token (of `samples.labels`, if given: aligned with the tokens, negative where
    unknown). A classifier's loss is that on its labels; without labels it is the cross-entropy with the original's own
    distribution, so `loss_before` is the entropy and the increase is the KL. For other outputs `loss_before` is 0,
    `loss_after` the relative squared error, and `agreement` the cosine similarity. A quantized output that is not a
    number counts as infinitely far away.

    Args:
        samples: Evaluation inputs.
        objective: What the output means.
        predict_original: Runs the original: named inputs to an output in float32.
        predict_quantized: Runs the quantized model: named inputs to an output of the same shape.
        batch_size: Samples run at once; each is compared alone. By default 32 samples or 2048 tokens, and of a language
            model no more than four million logits.
        progress: Told about samples done.

    Raises:
        CalibrationError: there is no sample, the original's output is not finite, or a label is no class of the model.
    """
    if len(samples) == 0:
        raise CalibrationError("there is no evaluation sample to measure on.")
    sums: list[_Sums] = []
    usual = min(USUAL_BATCH, max(1, USUAL_TOKENS // samples.tokens_per_sample))
    grows = batch_size is None and objective is Objective.LANGUAGE_MODEL
    size = batch_size or (1 if grows else usual)
    progress.start("evaluate", len(samples))
    while len(sums) < len(samples):
        batch = samples.part(len(sums), len(sums) + size)
        quantized = predict_quantized(batch.inputs)  # this first: it needs the more memory meanwhile
        give_back()
        original = predict_original(batch.inputs)
        give_back()
        for index in range(len(batch)):
            sums.append(_compared(original[index], quantized[index].float(), batch.part(index, index + 1), objective))
            if not math.isfinite(sums[-1].loss_before):
                raise CalibrationError(
                    f"the original model's output on evaluation sample {len(sums) - 1} is not finite."
                )
        if grows:
            size = max(1, min(usual, USUAL_LOGITS * len(batch) // original.numel()))
        progress.advance(len(batch))
        del original, quantized
        give_back()
    return _summary(sums)


def _summary(sums: list[_Sums]) -> Measurement:
    units, losses, labels = (sum(getattr(part, name) for part in sums) for name in ("units", "losses", "labels"))
    if units == 0:
        raise CalibrationError("every position of every evaluation sample is masked.")
    entropies = [part.entropy for part in sums if part.entropy is not None]
    return Measurement(
        kl=math.fsum(part.kl for part in sums) / units,
        loss_before=math.fsum(part.loss_before for part in sums) / max(losses, 1),
        loss_after=math.fsum(part.loss_after for part in sums) / max(losses, 1),
        agreement=math.fsum(part.agreeing for part in sums) / units,
        accuracy_before=sum(part.right_before for part in sums) / labels if labels else None,
        accuracy_after=sum(part.right_after for part in sums) / labels if labels else None,
        units=units,
        kl_by_sample=tuple(part.kl / max(part.units, 1) for part in sums),
        loss_increase_by_sample=tuple((part.loss_after - part.loss_before) / max(part.losses, 1) for part in sums),
        entropy=math.fsum(entropies) / units if entropies else None,
        regret_by_sample=tuple(part.regret / max(part.units, 1) for part in sums if part.regret is not None),
        uncertainty_by_sample=tuple(
            part.uncertainty / max(part.units, 1) for part in sums if part.uncertainty is not None
        ),
        accuracy_drop_by_sample=tuple(
            (part.right_before - part.right_after) / max(part.labels, 1) for part in sums if labels
        ),
    )


def _compared(original: Tensor, quantized: Tensor, sample: SampleSet, objective: Objective) -> _Sums:
    """One sample: outputs without the sample axis."""
    if original.shape != quantized.shape:
        shapes = f"{list(original.shape)}, expected; {list(quantized.shape)}, found"
        raise CalibrationError(f"the quantized model's output has another shape than the original's: {shapes}.")
    mask = None if sample.mask is None else sample.mask[0].bool()
    if objective is Objective.JOINT_VALUES:
        sizes = inverse_sizes(original)
        return _compare_values(original * sizes, quantized * sizes, None)
    if objective is Objective.VALUES:
        return _compare_values(original, quantized, mask)
    rows, other = original.reshape(-1, original.shape[-1]), quantized.reshape(-1, quantized.shape[-1])
    labels = _labels(sample, objective, len(rows))
    if int(labels.max()) >= rows.shape[1]:
        raise CalibrationError(f"label {int(labels.max())} is beyond the model's {rows.shape[1]} classes.")
    real = mask if mask is not None and mask.numel() == len(rows) else torch.ones(len(rows), dtype=torch.bool)
    return _compare_distributions(rows, other, labels, real, own_labels=objective is Objective.CLASSIFIER)


def _labels(sample: SampleSet, objective: Objective, rows: int) -> Int64[Tensor, "row"]:
    """The label of every row of logits, negative where unknown."""
    unknown = torch.full((rows,), NO_LABEL, dtype=torch.int64)
    if objective is Objective.CLASSIFIER:
        return unknown if sample.labels is None else sample.labels.reshape(-1).long().expand(rows)
    tokens = sample.labels if sample.labels is not None else token_input(sample.inputs)
    if tokens is None or tokens.numel() != rows:
        return unknown
    following = tokens.reshape(-1)[1:].long()
    if sample.labels is None and sample.mask is not None and sample.mask.numel() == rows:
        following = following.where(sample.mask.reshape(-1)[1:].bool(), NO_LABEL)
    return torch.cat((following, unknown[:1]))


def token_input(inputs: Mapping[str, Tensor]) -> Tensor | None:
    """The tokens that a language model predicts one after another, `None` if no input looks like them."""
    for name in TOKEN_INPUTS:
        if name in inputs:
            return inputs[name]
    integers = [values for values in inputs.values() if values.dtype is torch.int64 and values.dim() == 2]
    return integers[0] if len(integers) == 1 else None


def _compare_distributions(
    original: Float[Tensor, "row class"],
    quantized: Float[Tensor, "row class"],
    labels: Int64[Tensor, "row"],
    real: Bool[Tensor, "row"],
    *,
    own_labels: bool,
) -> _Sums:
    """Compare chunk by chunk; `own_labels` takes the original's distribution for the labels that are unknown."""
    kl = agreeing = before = after = total_entropy = regret = uncertainty = 0.0
    right_before = right_after = 0
    known = (labels >= 0) & real
    for part in _chunks(len(original), original.shape[1]):
        p, q = (torch.log_softmax(logits[part], dim=-1) for logits in (original, quantized))
        top_p, top_q = p.argmax(-1), q.argmax(-1)
        seen, labelled, targets = real[part], known[part], labels[part].clamp(min=0)[:, None]
        if labelled.any() or not own_labels:
            before -= _total(p.gather(1, targets)[:, 0], labelled)
            after -= _total(q.gather(1, targets)[:, 0], labelled)
            right_before += int(((top_p == targets[:, 0]) & labelled).sum())
            right_after += int(((top_q == targets[:, 0]) & labelled).sum())
        agreeing += float(((top_p == top_q) & seen).sum())
        share = p.exp()
        regret += _total((share.gather(1, top_p[:, None]) - share.gather(1, top_q[:, None]))[:, 0], seen)
        uncertainty += _total(1.0 - share.square().sum(-1), seen)
        entropy = -_total(_weighted(share, p), seen)
        difference = _total(_weighted(share, p.sub_(q)), seen)
        if own_labels and not labelled.any():
            before, after = before + entropy, after + entropy + difference
        kl += difference
        total_entropy += entropy
        if not math.isfinite(entropy):
            before = math.nan
    units, labelled_units = int(real.sum()), int(known.sum())
    return _Sums(
        kl=_or_infinite(max(kl, 0.0)),
        units=units,
        agreeing=agreeing,
        entropy=total_entropy,
        loss_before=before,
        loss_after=_or_infinite(after),
        losses=labelled_units if labelled_units or not own_labels else units,
        right_before=right_before,
        right_after=right_after,
        labels=labelled_units,
        regret=regret,
        uncertainty=uncertainty,
    )


def _compare_values(original: Tensor, quantized: Tensor, mask: Tensor | None) -> _Sums:
    if mask is not None and original.shape[: mask.dim()] == mask.shape:
        original, quantized = original[mask], quantized[mask]
    p, q = original.double().flatten(), quantized.double().flatten()
    norm, error = float(p @ p), float((p - q).square().sum())
    smallest = float(torch.finfo(torch.float32).tiny)
    kl = _or_infinite(0.5 * error / max(norm, smallest))
    size = math.sqrt(norm) * float(q.norm())
    cosine = float(p @ q) / size if size > 0 else float(error == 0)
    after = kl if math.isfinite(norm) else math.nan
    before = 0.0 if math.isfinite(norm) else math.nan
    agreeing = cosine if math.isfinite(cosine) else 0.0
    return _Sums(kl=kl, units=1, agreeing=agreeing, loss_before=before, loss_after=after, losses=1)


def _chunks(rows: int, classes: int) -> Iterator[slice]:
    size = max(1, CHUNK_ELEMENTS // max(classes, 1))
    return (slice(start, start + size) for start in range(0, rows, size))


def _weighted(share: Tensor, values: Tensor) -> Float[Tensor, "row"]:
    """`sum of share * values` by row; a class without probability adds nothing, even if its logit is minus infinity."""
    return torch.where(share > 0, share * values, 0.0).sum(-1)


def _total(values: Float[Tensor, "row"], chosen: Bool[Tensor, "row"]) -> float:
    return float(values[chosen].double().sum())


def _or_infinite(value: float) -> float:
    return math.inf if math.isnan(value) else value
