"""At how many bits a nested model is read: set for the whole model, for a block, or for each position apart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from guidedq.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor


class AbstractNestedWeight(ABC):
    """A weight in memory that can be read at several widths."""

    @property
    @abstractmethod
    def widths(self) -> tuple[int, ...]:
        """Those that it holds, rising."""

    @abstractmethod
    def read_at(self, precision: int | Tensor) -> None:
        """From now on read it at this width: one for all, or one for each position, `[*batch]`."""


def nested_weights(model: Any) -> tuple[AbstractNestedWeight, ...]:
    """The nested weights of a loaded model, tied ones once.

    Raises:
        ArtifactError: it has none.
    """
    modules = model.modules() if callable(getattr(model, "modules", None)) else ()
    found = tuple(module for module in modules if isinstance(module, AbstractNestedWeight))
    if not found:
        raise ArtifactError(
            f"this {type(model).__name__} has no nested weights: it has one precision. Compile with --nested 3,4,5."
        )
    return found


def precisions(model: Any) -> tuple[int, ...]:
    """The widths at which a loaded model can be read, rising.

    Raises:
        ArtifactError: it has no nested weights, or they differ.
    """
    widths = {weight.widths for weight in nested_weights(model)}
    if len(widths) > 1:
        raise ArtifactError(f"the nested weights differ in their widths: {sorted(widths)}. Write the artifact anew.")
    return next(iter(widths))


def set_precision(model: Any, bits: int | Tensor) -> None:
    """Read a nested model at this width from now on.

    Args:
        model: What `load_quantized` or transformers gave.
        bits: One of the model's widths, or a tensor of them, one for each position: `[batch, position]`, or
            `[batch, 1]` while one token of each text is decoded.

    Raises:
        ArtifactError: the model has no such width, or no nested weights.
    """
    weights, held = nested_weights(model), precisions(model)
    wanted: Sequence[int] = [bits] if isinstance(bits, int) else bits.unique().tolist()
    if unknown := [width for width in wanted if width not in held]:
        raise ArtifactError(
            f"this model has no precision of {', '.join(map(str, unknown))} bits. It has {', '.join(map(str, held))}."
        )
    for weight in weights:
        weight.read_at(bits)


@contextmanager
def at_precision(model: Any, bits: int | Tensor) -> Generator[None]:
    """Read a nested model at this width within the block, and at its widest after it.

    Raises:
        ArtifactError: as for `set_precision`.
    """
    set_precision(model, bits)
    try:
        yield
    finally:
        set_precision(model, precisions(model)[-1])
