"""How long work tells of its progress."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar, final, runtime_checkable

Item = TypeVar("Item")


@runtime_checkable
class Progress(Protocol):
    """Told about work done; implementations draw it, or do nothing."""

    def start(self, stage: str, total: int) -> None:
        """A stage begins, of `total` steps."""
        ...

    def advance(self, steps: int = 1) -> None:
        """So many steps of the current stage are done."""
        ...

    def notice(self, text: str) -> None:
        """Say something that the user should know."""
        ...


@final
class SilentProgress:
    """Says nothing."""

    def start(self, stage: str, total: int) -> None:
        """Nothing."""

    def advance(self, steps: int = 1) -> None:
        """Nothing."""

    def notice(self, text: str) -> None:
        """Nothing."""


def tracked(progress: Progress, stage: str, items: Iterable[Item], total: int) -> Iterator[Item]:
    """The items, each counted as one step when the next is asked for."""
    progress.start(stage, total)
    for item in items:
        yield item
        progress.advance()
