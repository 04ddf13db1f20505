"""docs/diagnostics.md says of every check what its code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from guidedq.diagnostics import diagnosis

ROOT = Path(__file__).parents[2]
REMEDY = "run benchmarks/diagnostics_page.py --page"


@pytest.fixture(scope="module")
def text() -> str:
    return (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8")


def test_every_check_is_told_with_its_number_threshold_and_advice(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from diagnostics_page import checks

    told = list(checks())
    imported = Path(str(diagnosis.__file__)).read_text().count("from guidedq.diagnostics.")
    assert len(told) == imported - 1  # effective_samples counts for two of them
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    assert list(sections) == [check.name for check in told], REMEDY
    for check in told:
        for said in (check.question, check.number, f"{check.bound} {check.threshold}", check.reason, check.advice):
            assert said in sections[check.name], (check.name, said, REMEDY)


def test_a_healthy_model_is_silent_and_each_case_fires_its_check(text: str) -> None:
    healthy = [line for line in text.splitlines() if line.startswith("- **Healthy**")]
    fired = [line for line in text.splitlines() if line.startswith("- **Made to fire**")]
    assert len(healthy) == len(fired) > 10
    assert not any("warning" in line for line in healthy)
    assert all(line.endswith("warning.") or "by hand" in line for line in fired)
    assert sum(line.endswith("warning.") for line in fired) >= 8
