"""What a backend wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from guidedq.artifacts.runtime import RuntimeFacts


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """What a backend wrote.

    Attributes:
        weights_file: The file that the budget bounds (with its external data, if any, in `more_files`).
        site_bytes: What each site takes in it.
        more_files: Further files that hold weights.
        notices: What the user should know about how the runtime will run it.
        runtime: What the runtime makes of it, if the backend reads that back.
    """

    weights_file: Path
    site_bytes: Mapping[str, int]
    more_files: tuple[Path, ...] = ()
    notices: tuple[str, ...] = ()
    runtime: RuntimeFacts | None = None

    @property
    def bytes(self) -> int:
        """Bytes on disk of everything that holds weights."""
        return sum(path.stat().st_size for path in (self.weights_file, *self.more_files))
