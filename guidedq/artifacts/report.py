"""The report: everything that a compile promised, did and measured, under names that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, final

from guidedq.artifacts.forecast import Forecast
from guidedq.artifacts.runtime import RuntimeFacts
from guidedq.errors import ArtifactError
from guidedq.strict_json import json_text, read_json


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Which model it was; `unit` is the unit of all losses."""

    name: str
    digest: str
    source: str
    objective: str
    unit: str
    parameters: int
    sites: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetFacts:
    """What was asked: the user's text, the bytes that it came to, and what it counts (`file` or `linear`)."""

    asked: str
    bytes: int
    scope: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SizeFacts:
    """What lies on disk: bytes of the weights file, all of them over all parameters, and the linear sites' alone."""

    file_bytes: int
    bits_per_weight: float
    linear_bits_per_weight: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredFacts:
    """The artifact against the original on evaluation data; `tokens` counts tokens, or samples."""

    kl: float
    loss_before: float
    loss_after: float
    agreement: float
    accuracy_before: float | None
    accuracy_after: float | None
    tokens: int

    @property
    def loss_increase(self) -> float:
        """Loss after minus before."""
        return self.loss_after - self.loss_before


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """One site: `bits` counts everything it takes in the file; `rows` gives the rows in each format."""

    name: str
    operator: str
    shape: tuple[int, ...]
    format: str
    bits: float
    bytes: int
    distortion: float
    rows: Mapping[str, int]

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPoint:
    """One size and its forecast."""

    asked: str
    bytes: int
    bits_per_weight: float
    linear_bits_per_weight: float
    forecast: Forecast


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePoint:
    """One probe: its size, what was predicted before calibration and what was measured."""

    bytes: int
    bits_per_weight: float
    raw_kl: float
    measured_kl: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One compile. `report.json` is this, field by field."""

    model: ModelFacts
    budget: BudgetFacts
    size: SizeFacts
    forecast: Forecast
    measured: MeasuredFacts
    curve: tuple[PlanPoint, ...]
    probes: tuple[ProbePoint, ...]
    seconds: Mapping[str, float]
    peak_memory_bytes: int
    sites: tuple[SiteFacts, ...]
    backend: str
    recipe: Mapping[str, Any]
    data: str
    digests: Mapping[str, str]
    guidance: Mapping[str, float]
    versions: Mapping[str, str]
    seed: int
    notices: tuple[str, ...]
    runtime: RuntimeFacts | None = None

    def to_json(self) -> str:
        """The report as JSON text."""
        return json_text(asdict(self))

    @staticmethod
    def read(path: Path) -> Report:
        """Read a `report.json`.

        Raises:
            ArtifactError: it is not one.
        """
        try:
            content: dict[str, Any] = read_json(path.read_text())
            points = tuple(
                PlanPoint(forecast=Forecast(**point.pop("forecast")), **point) for point in content.pop("curve")
            )
            sites = tuple(SiteFacts(shape=tuple(site.pop("shape")), **site) for site in content.pop("sites"))
            parts = {
                "model": ModelFacts(**content.pop("model")),
                "budget": BudgetFacts(**content.pop("budget")),
                "size": SizeFacts(**content.pop("size")),
                "forecast": Forecast(**content.pop("forecast")),
                "measured": MeasuredFacts(**content.pop("measured")),
                "probes": tuple(ProbePoint(**probe) for probe in content.pop("probes")),
                "notices": tuple(content.pop("notices")),
                "runtime": None if (runtime := content.pop("runtime", None)) is None else RuntimeFacts.of(runtime),
            }
            return Report(**parts, **content, curve=points, sites=sites)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} is no report of guidedq ({error}).") from error
