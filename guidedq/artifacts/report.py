"""The report: everything that a compile promised, did and measured, under names that stay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, TypeVar, final, get_type_hints

from guidedq.artifacts.diagnostic import Diagnostic
from guidedq.artifacts.forecast import Forecast
from guidedq.artifacts.manifest import FileEntry
from guidedq.artifacts.runtime import RuntimeFacts
from guidedq.errors import ArtifactError
from guidedq.strict_json import json_text, read_json

Facts = TypeVar("Facts")
REPORT_NAME = "report.json"
OWN_DIGEST = "report"
REPORT_VERSION = 2
"""Of the names in `report.json`: raised when one changes or goes. Reports without a version are older."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Which model it was, and where; `unit` is the unit of all losses."""

    name: str
    digest: str
    source: str
    objective: str
    unit: str
    parameters: int
    sites: int
    path: str = ""


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
class LatencyFacts:
    """What a call on one sample takes, as shares of the original's: predicted by a profile, and measured in turns.

    `integer_sites` of the sites are computed in integers; seconds are those measured.
    """

    asked: str
    profile: str
    threads: int
    integer_sites: int
    predicted_ratio: float
    measured_ratio: float
    original_seconds: float
    seconds: float


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
class PlanPart:
    """A part of the model, and what it takes of the file; `bits_per_weight` is 0 where there are no sites."""

    name: str
    bytes: int
    bits_per_weight: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPoint:
    """One size and its forecast; the parts make up the file, in the order of the data."""

    asked: str
    bytes: int
    bits_per_weight: float
    linear_bits_per_weight: float
    forecast: Forecast
    parts: tuple[PlanPart, ...] = ()


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
class SamplingFacts:
    """How the samples were drawn, so that they can be drawn again: the sampler's text, and files or folders."""

    sampler: str
    files: tuple[str, ...]
    evaluation_files: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """How it was run: on what, and what was asked besides a budget; `None` where it was not.

    Attributes:
        threads: Of torch. Sums of another number of threads differ in their last bits.
        processor: Its name.
        system: The operating system's.
        memory_bytes: The bound on statistics held at once.
        training_tokens: What the model was trained on.
        max_loss_increase: The gate for forecast and measured loss increase.
        strict: Whether diagnostics were a gate.
        nested: Widths of a nested artifact.
    """

    threads: int
    processor: str
    system: str
    memory_bytes: int | None = None
    training_tokens: float | None = None
    max_loss_increase: float | None = None
    strict: bool = False
    nested: tuple[int, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionFacts:
    """A nested artifact read at so many bits: what it reads of the file, what was forecast and what was measured."""

    bits: int
    read_bits_per_weight: float
    forecast: Forecast
    measured: MeasuredFacts


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleFacts:
    """A schedule tried on a nested artifact: its text, bits of a token as read, and KL with its 90% interval.

    The KL is that of the calibration's probe texts, every token read as a decoded one.
    """

    name: str
    text: str
    average_bits: float
    kl: float
    kl_low: float
    kl_high: float
    chosen: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One compile. `report.json` is this, field by field.

    Reports of older versions have neither `sampling` nor `files` nor `diagnostics` nor `run`.

    Attributes:
        digests: SHA-256, hex: of the `model`, of the samples (`data`, and of these `calibration` and `evaluation`), of
            the `recipe`, of the `allocation`, and of the `artifact`, that is of all its files. `report.json` has one
            more, `report`: of all else that it says (`report_digest`).
        precisions: Of a nested artifact, narrowest first; `forecast` and `measured` are those of the widest.
        schedules: Those that `guidedq schedule` tried last, of which one is chosen.
        files: Size and SHA-256 of every file of the artifact but the report's own.
    """

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
    diagnostics: tuple[Diagnostic, ...] = ()
    sampling: SamplingFacts | None = None
    version: int = REPORT_VERSION
    files: Mapping[str, FileEntry] = field(default_factory=dict[str, FileEntry])
    runtime: RuntimeFacts | None = None
    latency: LatencyFacts | None = None
    precisions: tuple[PrecisionFacts, ...] = ()
    schedules: tuple[ScheduleFacts, ...] = ()
    run: RunFacts | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, its own digest among its digests."""
        return asdict(replace(self, digests={**self.digests, OWN_DIGEST: self.digest}))

    def to_json(self) -> str:
        """The report as JSON text, its own digest among its digests."""
        return json_text(self.to_dict())

    @property
    def digest(self) -> str:
        """SHA-256 of all that the report says, hex."""
        return report_digest(json.loads(json_text(asdict(self))))

    @staticmethod
    def read(path: Path) -> Report:
        """Read a `report.json`.

        Raises:
            ArtifactError: it is not one, is truncated, was altered, or was written by a newer version.
        """
        try:
            text = path.read_text()
            content: dict[str, Any] = read_json(text)
            if (version := content.setdefault("version", 1)) > REPORT_VERSION:
                raise ArtifactError(
                    f"{path} has version {version}; this guidedq reads up to {REPORT_VERSION}. Install a newer one."
                )
            stated = content["digests"].pop(OWN_DIGEST, None)
            if stated is not None and stated != report_digest(json.loads(text)):
                raise ArtifactError(f"{path} was altered: what it says has not the digest that it states.")
            points = tuple(map(_plan_point, content.pop("curve")))
            sites = tuple(SiteFacts(shape=tuple(site.pop("shape")), **site) for site in content.pop("sites"))
            parts = {
                "model": ModelFacts(**content.pop("model")),
                "budget": BudgetFacts(**content.pop("budget")),
                "size": _numeric(SizeFacts(**content.pop("size"))),
                "forecast": _numeric(Forecast(**content.pop("forecast"))),
                "measured": _numeric(MeasuredFacts(**content.pop("measured"))),
                "probes": tuple(ProbePoint(**probe) for probe in content.pop("probes")),
                "notices": tuple(content.pop("notices")),
                "sampling": _sampling(content.pop("sampling", None)),
                "files": {name: FileEntry(**entry) for name, entry in content.pop("files", {}).items()},
                "diagnostics": tuple(_numeric(Diagnostic(**check)) for check in content.pop("diagnostics", ())),
                "latency": None
                if (latency := content.pop("latency", None)) is None
                else _numeric(LatencyFacts(**latency)),
                "runtime": None if (runtime := content.pop("runtime", None)) is None else RuntimeFacts.of(runtime),
                "precisions": tuple(map(_precision, content.pop("precisions", ()))),
                "schedules": tuple(_numeric(ScheduleFacts(**one)) for one in content.pop("schedules", ())),
                "run": None if (run := content.pop("run", None)) is None else _run(run),
            }
            return Report(**parts, **content, curve=points, sites=sites)
        except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{path} is no report of guidedq ({error}).") from error


def _numeric(facts: Facts) -> Facts:
    """The same facts, whose numbers are numbers.

    Raises:
        ValueError: one is not.
    """
    for name, hint in get_type_hints(type(facts)).items():
        value: Any = getattr(facts, name)
        wanted = hint in (int, float) or (hint == float | None and value is not None)
        if wanted and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} is {value!r}, expected a number")
    return facts


def _precision(content: dict[str, Any]) -> PrecisionFacts:
    forecast, measured = Forecast(**content.pop("forecast")), MeasuredFacts(**content.pop("measured"))
    return PrecisionFacts(forecast=_numeric(forecast), measured=_numeric(measured), **content)


def _sampling(content: dict[str, Any] | None) -> SamplingFacts | None:
    if content is None:
        return None
    return SamplingFacts(
        sampler=content["sampler"],
        files=tuple(content["files"]),
        evaluation_files=tuple(content["evaluation_files"]),
    )


def read_report(place: Path) -> Report:
    """The report at a path: an artifact's folder, or a `report.json`.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    path = place / REPORT_NAME if place.is_dir() else place
    if not path.is_file():
        raise ArtifactError(
            f"{place} has no {REPORT_NAME}. Expected a folder that guidedq compile wrote."
            if place.is_dir()
            else f"no such report: {path}."
        )
    return Report.read(path)


def is_sealed(place: Path) -> bool:
    """Whether an artifact's report has a digest of its own; those of older versions have none."""
    return OWN_DIGEST in json.loads((place / REPORT_NAME).read_text())["digests"]


def files_digest(files: Mapping[str, FileEntry]) -> str:
    """SHA-256 over the files' names and digests, hex: of a whole artifact."""
    listed = "".join(f"{files[name].sha256}  {name}\n" for name in sorted(files))
    return hashlib.sha256(listed.encode()).hexdigest()


def report_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a report's plain values but this digest itself, hex: of JSON with sorted keys and no white space.

    It tells accident and careless change from what was written. Who alters a report on purpose can make a new digest:
    against that, keep the digest elsewhere.
    """
    digests = {name: value for name, value in content["digests"].items() if name != OWN_DIGEST}
    canonical = json.dumps({**content, "digests": digests}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def recipe_digest(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of a recipe's plain values, hex."""
    return hashlib.sha256(json_text(recipe).encode()).hexdigest()


def _run(content: dict[str, Any]) -> RunFacts:
    return RunFacts(nested=tuple(content.pop("nested")), **content)


def _plan_point(content: dict[str, Any]) -> PlanPoint:
    parts = tuple(PlanPart(**part) for part in content.pop("parts", ()))
    return PlanPoint(forecast=Forecast(**content.pop("forecast")), parts=parts, **content)
