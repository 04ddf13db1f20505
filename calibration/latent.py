"""Real numbers behind the codes of a weight, which gradients move and the model sees rounded."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from guidedq.artifacts.quantized_weight import WEIGHTS_AT_ONCE, EntropySegment, QuantizedWeight, RoundedSegment
from guidedq.ir.graph import Site

from .cheaper_codes import CODES, cheaper, code_lengths, length_slopes

MEAN_DECAY, SQUARE_DECAY = 0.9, 0.95
"""Adam's: the second is short, for there are few steps."""
EDGE = 0.49
"""Numbers start inside their cell."""
TINY = 1e-30
SLOPES_KEPT = 16
"""Steps for which the lengths of codes are taken to stay as they are."""
_NONE = torch.zeros(256, dtype=torch.int64)


@final
class LatentWeights(Mapping[str, Tensor]):
    """The weights of one step: rounded when the model asks, moved as soon as their gradient is whole."""

    def __init__(self, latents: Mapping[str, LatentWeight], step: int, rate: float, price: float = 0.0) -> None:
        """Take the step of this number, counted from 1, at this learning rate, where a bit costs so much loss."""
        self._latents = latents
        self._step, self._rate, self._price = step, rate, price
        self._anchor = torch.zeros((), requires_grad=True)
        self._asked: dict[str, int] = {}
        self._gradients: dict[str, Tensor] = {}
        self._counting = False

    @contextmanager
    def forward_pass(self) -> Generator[None]:
        """Each weight that is asked for in here will get a gradient; later the model only computes again."""
        self._counting = True
        try:
            yield
        finally:
            self._counting = False

    def __getitem__(self, name: str) -> Tensor:
        if self._counting:
            self._asked[name] = self._asked.get(name, 0) + 1
        return _OnUse.apply(self._anchor, self, name)  # pyright: ignore[reportReturnType]

    def __iter__(self) -> Iterator[str]:
        return iter(self._latents)

    def __len__(self) -> int:
        return len(self._latents)

    def stored(self, name: str) -> Tensor:
        """The rounded weight in the model's shape."""
        latent = self._latents[name]
        return latent.site.stored(latent.rounded())

    def hear(self, name: str, gradient: Tensor) -> None:
        """One use's gradient; with the last one the weight is moved."""
        self._asked[name] -= 1
        before = self._gradients.pop(name, None)
        total = gradient if before is None else before + gradient
        if self._asked[name]:
            self._gradients[name] = total
        else:
            latent = self._latents[name]
            latent.move(latent.site.matrix(total), self._step, self._rate, self._price)


class _OnUse(torch.autograd.Function):
    """A weight that is made when it is used; where activations are computed again, so is the weight: none is kept."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, weights: Any, name: str) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.weights, ctx.name = weights, name
        return weights.stored(name)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.weights.hear(ctx.name, gradient)
        return None, None, None


@final
class LatentWeight:
    """One weight: its segments with the numbers behind their codes."""

    def __init__(self, site: Site, weight: QuantizedWeight, matrix: Float[Tensor, "out in"], start: float) -> None:
        """Start `start` of the way from each code to the original weight, within the code's cell."""
        self.site = site
        self._weight = weight
        self._parts = [
            _LatentSegment(segment, matrix, start) if isinstance(segment, RoundedSegment) else segment
            for segment in weight.segments
        ]

    def rounded(self) -> Float[Tensor, "out in"]:
        """What the model sees."""
        values = torch.empty(self._weight.shape)
        for part in self._parts:
            if not isinstance(part, _LatentSegment):
                values[part.rows] = part.dequantize()
                continue
            for place in part.places():
                values[part.segment.rows[place]] = part.rounded(place).dequantize()
        return values

    def move(self, gradient: Float[Tensor, "out in"], step: int, rate: float, price: float = 0.0) -> None:
        """One step of Adam; `price` is the loss that a bit is worth, where codes are stored by their entropy."""
        for part in self._parts:
            if isinstance(part, _LatentSegment):
                slopes = price * part.length_slopes() if price and part.is_coded else None
                for place in part.places():
                    part.move(place, gradient[part.segment.rows[place]], step, rate, slopes)

    def entropy_coded(self) -> tuple[float, int]:
        """Bits of the codes that are stored by their entropy, and how many codes these are."""
        coded = [part.counts() for part in self._parts if isinstance(part, _LatentSegment) and part.is_coded]
        bits = [float(counts @ code_lengths(counts)) for counts in coded]
        return float(sum(bits)), sum(int(counts.sum()) for counts in coded)

    def quantized(self, pull: float = 0.0) -> QuantizedWeight:
        """The weight with the codes that it has now; under a pull (`cheaper_codes.py`), with shorter ones."""
        segments = tuple(
            part.segment.with_codes(part.shortened(pull)) if isinstance(part, _LatentSegment) else part
            for part in self._parts
        )
        return replace(self._weight, segments=segments)


@final
class _LatentSegment:
    """Offsets from the codes, in codes, and Adam's moments: six bytes a weight."""

    def __init__(self, segment: RoundedSegment, matrix: Float[Tensor, "out in"], start: float) -> None:
        self.segment = segment
        self._least, self._most = segment.code_range
        self._offsets = torch.empty(segment.codes.shape, dtype=torch.float16)
        self._mean = torch.zeros(segment.codes.shape, dtype=torch.bfloat16)
        self._square = torch.zeros(segment.codes.shape, dtype=torch.bfloat16)
        self._slopes, self._age = torch.zeros(CODES), 0
        for place in self.places():
            part = segment.part(place)
            steps = part.steps()
            offsets = (matrix[part.rows] - part.dequantize()) / steps.clamp(min=TINY) * start
            self._offsets[place] = torch.where(steps > 0, offsets.clamp_(-EDGE, EDGE), 0.0).half()

    def places(self) -> Iterator[slice]:
        """Parts that fit a core's cache."""
        rows, columns = self.segment.codes.shape
        step = max(1, WEIGHTS_AT_ONCE // columns)
        return (slice(start, start + step) for start in range(0, rows, step))

    def codes(self, place: slice) -> UInt8[Tensor, "n in"]:
        """The codes now."""
        codes = self.segment.codes[place].float().add_(self._offsets[place]).round_()
        return codes.clamp_(self._least, self._most).to(torch.uint8)

    @property
    def is_coded(self) -> bool:
        """Whether the codes are stored by their entropy."""
        return isinstance(self.segment, EntropySegment)

    def counts(self) -> Float[Tensor, "codes"]:
        """How often each code is there now."""
        return sum((self.codes(place).flatten().bincount(minlength=CODES) for place in self.places()), _NONE).float()

    def length_slopes(self) -> Float[Tensor, "codes"]:
        """How many bits more the next code takes, as it was some steps ago at most."""
        if self._age % SLOPES_KEPT == 0:
            self._slopes = length_slopes(self.counts())
        self._age += 1
        return self._slopes

    def shortened(self, pull: float) -> UInt8[Tensor, "n in"]:
        """All codes; of an entropy format, which alone gains by it, under a pull."""
        if not (pull and self.is_coded):
            return self.codes(slice(None))
        counts = self.counts()
        numbers = (self.segment.codes[place].float().add_(self._offsets[place]) for place in self.places())
        return torch.cat([cheaper(part, counts, pull, self._least, self._most) for part in numbers])

    def rounded(self, place: slice) -> RoundedSegment:
        """Some rows with the codes that they have now."""
        return self.segment.part(place).with_codes(self.codes(place))

    def move(
        self, place: slice, gradient: Float[Tensor, "n in"], step: int, rate: float, slopes: Tensor | None
    ) -> None:
        gradient = gradient * self.segment.part(place).steps()
        if slopes is not None:
            gradient += slopes[self.codes(place).int()]
        mean = self._mean[place].float().mul_(MEAN_DECAY).add_(gradient, alpha=1.0 - MEAN_DECAY)
        square = self._square[place].float().mul_(SQUARE_DECAY).addcmul_(gradient, gradient, value=1.0 - SQUARE_DECAY)
        self._mean[place], self._square[place] = mean.bfloat16(), square.bfloat16()
        size = square.div_(1.0 - SQUARE_DECAY**step).sqrt_().add_(TINY)
        moved = self._offsets[place].float().addcdiv_(mean, size, value=-rate / (1.0 - MEAN_DECAY**step))
        self._offsets[place] = moved.half()
