"""Close in on a size that is known only once codes are: entropy formats are counted by their mean sizes before."""

from __future__ import annotations

from collections.abc import Callable

from guidedq.driver.decision import Decision, decide
from guidedq.driver.evidence import Evidence
from guidedq.driver.job import Job

MARGIN = 0.0007
"""Share of the limit that is left free at first where sizes are estimates."""
SLACK = 0.004
"""Share of the limit that may be left unused, unless more is allowed."""
REFINED_SLACK = 0.01
"""The same where rows have learned: giving them other formats would cost more than the bytes are worth."""
MOST_ATTEMPTS = 6
"""The second fits as a rule."""


def fitted(
    job: Job,
    evidence: Evidence,
    decision: Decision,
    limit: int | None,
    size_of: Callable[[Decision], int],
    slack: float = SLACK,
) -> Decision | None:
    """The decision, corrected until its true size fills the limit; `None` if none that fits is found.

    The sizes asked for close in on the limit from both sides; the largest that fits is taken in the end.

    Args:
        job: What is compiled.
        evidence: Says whether sizes are known beforehand: then the first attempt is the last.
        decision: Where to start.
        limit: In bytes; if there is none, the decision stays as it is.
        size_of: The true size of a decision, in bytes; costs work.
        slack: Share of the limit that may be left unused.
    """
    if limit is None:
        return decision
    aim, below, above = decision.allocation.bytes, 0, 2 * limit + decision.allocation.bytes
    best: tuple[int, Decision] | None = None
    for _ in range(1 if evidence.exact else MOST_ATTEMPTS):
        size = size_of(decision)
        fits = size <= limit
        if fits and (best is None or size > best[0]):
            best = size, decision
        if fits and (evidence.exact or size >= (1 - slack) * limit):
            break
        below, above = (aim, above) if fits else (below, aim)
        aim -= size - int((1 - MARGIN) * limit)
        aim = aim if below < aim < above else (below + above) // 2
        (other,) = decide(job, evidence, decision.probes, [aim])
        if other.allocation.digest == decision.allocation.digest:
            break
        decision = other
    return None if best is None else best[1]
