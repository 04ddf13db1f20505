"""An allocation: which format every row of every site gets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from jaxtyping import Int64
from torch import Tensor

from guidedq.quant.formats import Format


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SiteAllocation:
    """The formats of one site.

    Attributes:
        formats: All candidates.
        choice: Index into `formats` for each row.
        bytes: Bytes that the site takes in the file.
        distortion: Sum of the rows' guided distortions, loss per token or sample.
    """

    formats: tuple[Format, ...]
    choice: Int64[Tensor, "out"]
    bytes: int
    distortion: float

    @property
    def used(self) -> Mapping[Format, int]:
        """Rows of each format that is used."""
        counts = self.choice.bincount(minlength=len(self.formats)).tolist()
        return {format: rows for format, rows in zip(self.formats, counts, strict=True) if rows}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The formats of the whole model.

    Attributes:
        sites: By name.
        base_bytes: Bytes of the file besides the sites.
    """

    sites: Mapping[str, SiteAllocation]
    base_bytes: int

    @property
    def bytes(self) -> int:
        """Bytes of the whole file."""
        return self.base_bytes + sum(site.bytes for site in self.sites.values())

    @property
    def distortion(self) -> float:
        """Sum over sites, as if errors did not meet."""
        return sum(site.distortion for site in self.sites.values())

    @property
    def digest(self) -> str:
        """SHA-256 of every row's format, hex."""
        state = hashlib.sha256()
        for name, site in self.sites.items():
            state.update(f"{name} {' '.join(map(str, site.formats))}\n".encode())
            state.update(site.choice.numpy().tobytes())
        return state.hexdigest()
