"""The interface of what knows a runtime's kernels and the time they take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from guidedq.artifacts.activations import ActivationPlace
from guidedq.artifacts.footprint import Footprint
from guidedq.artifacts.profile import Kernel, Profile, SiteKernels
from guidedq.ir.model import Model
from guidedq.ir.program import Batch
from guidedq.progress import Progress


class AbstractTimer(ABC):
    """Knows which kernels of a runtime run which site, and how long they take on this machine."""

    @abstractmethod
    def kernels(
        self, model: Model, footprint: Footprint, inputs: Mapping[str, Sequence[int]]
    ) -> Mapping[str, SiteKernels]:
        """The kernels that could run each quantizable site.

        Args:
            model: What is to be stored.
            footprint: Its formats.
            inputs: The shape that each operator of a site reads in the call that is to be timed.
        """

    @abstractmethod
    def rounding(self, places: Sequence[ActivationPlace], inputs: Mapping[str, Sequence[int]]) -> Mapping[str, Kernel]:
        """The kernels that round activations to integers, by the place, where that takes a kernel of its own.

        Args:
            places: Of the model.
            inputs: As for `kernels`.
        """

    @abstractmethod
    def alternatives(self, kernel: Kernel) -> Sequence[Kernel]:
        """All kernels that could run what `kernel`, one of an unquantized model, does; itself the first."""

    @abstractmethod
    def grid(self) -> Sequence[Kernel]:
        """Kernels over shapes among which those of most models lie."""

    @abstractmethod
    def profile(self, kernels: Sequence[Kernel], *, threads: int, progress: Progress) -> Profile:
        """Measure kernels on this machine; those of one shape take turns, so that they meet the same other work.

        Raises:
            ProfileError: the runtime refuses one.
        """

    @abstractmethod
    def latencies(self, model: Model, batch: Batch, folders: Sequence[Path], *, threads: int) -> tuple[float, ...]:
        """Seconds of a call of the model's own file, and of what `emit` wrote into each of `folders`, in turns.

        Raises:
            ProfileError: the runtime does not run the model's own file.
        """
