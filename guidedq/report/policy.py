"""A policy: what a report must say before an artifact may go on. TOML, thresholds by metric."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from guidedq.artifacts.report import Report
from guidedq.budget import parse_budget
from guidedq.errors import BudgetError, PolicyError
from guidedq.report.wording import checked_text, perplexity, warning_text

LIMITS, DIAGNOSTICS, ALLOWED = "at-most", "diagnostics", "allowed"
FILE_BYTES = "file-bytes"
EXAMPLE = f"[{LIMITS}]\\nloss-increase = 0.05"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is asked of a report.

    Attributes:
        limits: The most that each of these metrics may be; see `METRICS`.
        allowed_warnings: Diagnostics that may warn; `None` if none is looked at.
    """

    limits: Mapping[str, float]
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
}
"""What a policy can bound: measured values, in the report's unit; the forecast's error is relative to the measured KL.
`None` where a report has no such number."""


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
    """A policy from TOML: a table `at-most` of metrics, and `allowed` warnings in a table `diagnostics`.

    Raises:
        PolicyError: no TOML, an unknown name, a value that is no threshold, or nothing is asked.
    """
    try:
        content = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"no TOML: {error}.") from error
    if unknown := sorted(set(content) - {LIMITS, DIAGNOSTICS}):
        raise PolicyError(f"a policy has the tables [{LIMITS}] and [{DIAGNOSTICS}], found {unknown[0]!r}.")
    limits = _table(content, LIMITS)
    if unknown := sorted(set(limits) - set(METRICS)):
        raise PolicyError(f"there is no metric {unknown[0]!r}. Metrics: {', '.join(METRICS)}.")
    policy = Policy(
        limits={name: _threshold(name, value) for name, value in limits.items()},
        allowed_warnings=_allowed(_table(content, DIAGNOSTICS)) if DIAGNOSTICS in content else None,
    )
    if not policy.limits and policy.allowed_warnings is None:
        raise PolicyError(f"the policy asks nothing. Expected something like {EXAMPLE!r}.")
    return policy


def check_policy(report: Report, policy: Policy) -> PolicyResult:
    """Hold a report against a policy; what a report does not have is not met."""
    checks = [_limited(name, METRICS[name](report), limit) for name, limit in policy.limits.items()]
    if policy.allowed_warnings is not None:
        for diagnostic in report.diagnostics:
            allowed = diagnostic.warns and diagnostic.name in policy.allowed_warnings
            said = warning_text(diagnostic) if diagnostic.warns else checked_text(diagnostic)
            found = f"{said} (allowed)" if allowed else said
            checks.append(PolicyCheck(name=diagnostic.name, met=allowed or not diagnostic.warns, found=found))
        if not report.diagnostics:
            checks.append(PolicyCheck(name=DIAGNOSTICS, met=False, found="the report has none: compile anew"))
    return PolicyResult(report=report, checks=tuple(checks))


def _limited(name: str, value: float | None, limit: float) -> PolicyCheck:
    if value is None:
        return PolicyCheck(name=name, met=False, found="the report has no such number")
    return PolicyCheck(name=name, met=value <= limit, found=f"{value:.6g}, at most {limit:.6g}")


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
