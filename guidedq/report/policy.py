"""A policy: what a report must say before an artifact may go on. TOML, thresholds by metric."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from guidedq.artifacts.report import Report
from guidedq.budget import parse_budget
from guidedq.errors import BudgetError, PolicyError
from guidedq.report.wording import checked_text, perplexity, warning_text

AT_MOST, AT_LEAST, DIAGNOSTICS, ALLOWED = "at-most", "at-least", "diagnostics", "allowed"
FILE_BYTES = "file-bytes"
EXAMPLE = f"[{AT_MOST}]\\nloss-increase = 0.05"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is asked of a report.

    Attributes:
        at_most: The most that each of these metrics may be; see `METRICS`.
        at_least: The least.
        allowed_warnings: Diagnostics that may warn; `None` if none is looked at.
    """

    at_most: Mapping[str, float]
    at_least: Mapping[str, float]
    allowed_warnings: frozenset[str] | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyCheck:
    """One demand of a policy: whether the report meets it, and in words what was found and what was asked."""

    name: str
    met: bool
    found: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResult:
    """All demands of a policy on one report."""

    report: Report
    checks: tuple[PolicyCheck, ...]

    @property
    def met(self) -> bool:
        """Whether the report meets all of them."""
        return all(check.met for check in self.checks)


def _perplexity_ratio(report: Report) -> float | None:
    return perplexity(report.measured.loss_increase) if report.model.objective == "language_model" else None


def _accuracy_drop(report: Report) -> float | None:
    before, after = report.measured.accuracy_before, report.measured.accuracy_after
    return None if before is None or after is None else before - after


def _forecast_error(report: Report) -> float:
    error, measured = abs(report.forecast.kl - report.measured.kl), report.measured.kl
    return 0.0 if error == 0.0 else math.inf if measured == 0.0 else error / measured


def _latency_ratio(report: Report) -> float | None:
    return None if report.latency is None else report.latency.measured_ratio


SAME_AT_ALL = ("bits-per-weight", "linear-bits-per-weight", FILE_BYTES, "latency-ratio")
"""Of the whole file, whatever precision of a nested one is read."""
METRICS: Mapping[str, Callable[[Report], float | None]] = {
    "loss-increase": lambda report: report.measured.loss_increase,
    "kl": lambda report: report.measured.kl,
    "perplexity-ratio": _perplexity_ratio,
    "accuracy-drop": _accuracy_drop,
    "bits-per-weight": lambda report: report.size.bits_per_weight,
    "linear-bits-per-weight": lambda report: report.size.linear_bits_per_weight,
    FILE_BYTES: lambda report: float(report.size.file_bytes),
    "forecast-error": _forecast_error,
    "latency-ratio": _latency_ratio,
    "agreement": lambda report: report.measured.agreement,
    "accuracy": lambda report: report.measured.accuracy_after,
    "kl-upper-bound": lambda report: report.forecast.kl_high,
    "loss-increase-upper-bound": lambda report: report.forecast.loss_increase_high,
    "accuracy-drop-upper-bound": lambda report: report.forecast.accuracy_drop_high,
}
"""What a policy can bound: measured values, in the report's unit, and the upper ends of the forecast's intervals; the
forecast's error is relative to the measured KL. `None` where a report has no such number."""


def read_policy(path: Path) -> Policy:
    """A policy from a TOML file.

    Raises:
        PolicyError: it is none.
    """
    try:
        return parse_policy(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path} is no TOML: {error}.") from error
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from error


def parse_policy(toml: str) -> Policy:
    """A policy from TOML: tables `at-most` and `at-least` of metrics, and `allowed` warnings in a table `diagnostics`.

    Raises:
        PolicyError: no TOML, an unknown name, a value that is no threshold, or nothing is asked.
    """
    try:
        content = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"no TOML: {error}.") from error
    if unknown := sorted(set(content) - {AT_MOST, AT_LEAST, DIAGNOSTICS}):
        raise PolicyError(
            f"a policy has the tables [{AT_MOST}], [{AT_LEAST}] and [{DIAGNOSTICS}], found {unknown[0]!r}."
        )
    policy = Policy(
        at_most=_thresholds(_table(content, AT_MOST)),
        at_least=_thresholds(_table(content, AT_LEAST)),
        allowed_warnings=_allowed(_table(content, DIAGNOSTICS)) if DIAGNOSTICS in content else None,
    )
    if not policy.at_most and not policy.at_least and policy.allowed_warnings is None:
        raise PolicyError(f"the policy asks nothing. Expected something like {EXAMPLE!r}.")
    return policy


def check_policy(report: Report, policy: Policy) -> PolicyResult:
    """Hold a report against a policy, a nested artifact at each precision; what a report does not have is not met."""
    checks = [check for name, limit in policy.at_most.items() for check in _limited(report, name, limit, -1.0)]
    checks += [check for name, limit in policy.at_least.items() for check in _limited(report, name, limit, 1.0)]
    if policy.allowed_warnings is not None:
        for diagnostic in report.diagnostics:
            allowed = diagnostic.warns and diagnostic.name in policy.allowed_warnings
            said = warning_text(diagnostic) if diagnostic.warns else checked_text(diagnostic)
            found = f"{said} (allowed)" if allowed else said
            checks.append(PolicyCheck(name=diagnostic.name, met=allowed or not diagnostic.warns, found=found))
        if not report.diagnostics:
            checks.append(PolicyCheck(name=DIAGNOSTICS, met=False, found="the report has none: compile anew"))
    return PolicyResult(report=report, checks=tuple(checks))


def _limited(report: Report, name: str, limit: float, side: float) -> Iterator[PolicyCheck]:
    """One metric against a limit: no less if `side` is 1, no more if it is -1."""
    if not report.precisions or name in SAME_AT_ALL:
        yield _held(name, METRICS[name](report), limit, side)
        return
    for facts in report.precisions:
        read = replace(report, forecast=facts.forecast, measured=facts.measured)
        yield _held(f"{name} at {facts.bits} bits", METRICS[name](read), limit, side)


def _held(name: str, value: float | None, limit: float, side: float) -> PolicyCheck:
    if value is None:
        return PolicyCheck(name=name, met=False, found="the report has no such number")
    bound = "at least" if side > 0 else "at most"
    return PolicyCheck(name=name, met=side * value >= side * limit, found=f"{value:.6g}, {bound} {limit:.6g}")


def _thresholds(table: Mapping[str, Any]) -> Mapping[str, float]:
    if unknown := sorted(set(table) - set(METRICS)):
        raise PolicyError(f"there is no metric {unknown[0]!r}. Metrics: {', '.join(METRICS)}.")
    return {name: _threshold(name, value) for name, value in table.items()}


def _table(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, dict):
        raise PolicyError(f"{name} = {table!r}: expected a table, [{name}].")
    return table


def _threshold(name: str, value: Any) -> float:
    if name == FILE_BYTES and isinstance(value, str):
        try:
            size = parse_budget(value)
        except BudgetError as error:
            raise PolicyError(f"{name} = {value!r}: expected a size such as '120MB'.") from error
        if size.kind != "bytes":
            raise PolicyError(f"{name} = {value!r}: expected bytes, such as '120MB'.")
        return size.amount
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise PolicyError(f"{name} = {value!r}: expected a number.")
    return float(value)


def _allowed(table: Mapping[str, Any]) -> frozenset[str]:
    if unknown := sorted(set(table) - {ALLOWED}):
        raise PolicyError(f"[{DIAGNOSTICS}] has {ALLOWED!r} alone, found {unknown[0]!r}.")
    names = table.get(ALLOWED, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PolicyError(f"{DIAGNOSTICS}.{ALLOWED} = {names!r}: expected a list of names, such as ['over-training'].")
    return frozenset(names)
