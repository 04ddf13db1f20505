"""Measure one ONNX file against the original: loading, memory, latency, loss. Runs in a process of its own.

    python onnx_measure.py ENTRY FILE.onnx

Imports ONNX Runtime and numpy alone, and runs on one thread. In this order: FILE is loaded and run on one sample, which
gives the memory; both are loaded some times over; both run that sample in turns; both run all evaluation samples.
Prints JSON. Memory is the most that the process had resident (VmHWM) beyond what it had before it loaded anything.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime
from zoo.entries import Entry, batches, feeds, read_entry
from zoo.scores import agreeing, divergences, score, squared_errors, summary

LOADS = 3
"""Times each file is loaded; the least counts."""
Result = TypeVar("Result")
CALLS, SECONDS = (5, 60), 3.0
"""Calls of each model at least and at most, and about how long they may take."""


def main() -> None:
    """Measure."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core: no time goes to moving between caches
    entry, path = read_entry(Path(sys.argv[1])), Path(sys.argv[2])
    evaluation = entry.arrays("evaluation")
    one = feeds(entry.facts, evaluation, 0, 1)
    before = most_resident()
    first, session = timed(lambda: session_of(path))
    _ = session.run([entry.facts.output], one)
    memory = most_resident() - before
    loads = [first, *(timed(lambda: session_of(path))[0] for _ in range(LOADS - 1))]
    original_loads = [timed(lambda: session_of(entry.model))[0] for _ in range(LOADS)]
    original = session_of(entry.model)
    least = latencies(entry, {"original": original, "file": session}, one)
    print(
        json.dumps(
            {
                "load_seconds": min(loads),
                "load_ratio": min(loads) / min(original_loads),
                "memory_bytes": memory,
                "milliseconds": 1000 * least["file"],
                "latency": least["file"] / least["original"],
                **losses(entry, original, session, evaluation),
            }
        )
    )


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """One thread, default optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds, and what came of it."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def most_resident() -> int:
    """Bytes that the process had resident at most so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def latencies(
    entry: Entry, sessions: dict[str, onnxruntime.InferenceSession], one: dict[str, np.ndarray]
) -> dict[str, float]:
    """Seconds of the fastest call, in turns."""
    least = dict.fromkeys(sessions, float("inf"))
    start = time.perf_counter()
    for call in range(CALLS[1]):
        for name, session in sessions.items():
            seconds, _ = timed(lambda: session.run([entry.facts.output], one))  # noqa: B023  (called at once)
            least[name] = min(least[name], seconds)
        if call + 1 >= CALLS[0] and time.perf_counter() - start > SECONDS:
            break
    return least


def losses(
    entry: Entry,
    original: onnxruntime.InferenceSession,
    session: onnxruntime.InferenceSession,
    evaluation: dict[str, np.ndarray],
) -> dict[str, float | None]:
    """Divergence or error, agreement and score over the evaluation samples."""
    facts, truth = entry.facts, entry.arrays("task")
    found: dict[str, list[np.ndarray]] = {"kl": [], "relative_error": [], "agreement": [], "score": []}
    done = 0
    for batch in batches(facts, evaluation):
        p, q = (np.asarray(one.run([facts.output], batch)[0]) for one in (original, session))
        part = {name: values[done : done + len(p)] for name, values in truth.items()}
        if facts.meaning != "values":
            found["kl"].append(divergences(p, q, facts).ravel())
        found["relative_error"].append(squared_errors(p, q, batch.get("attention_mask")))
        found["agreement"].append(agreeing(p, q, facts).ravel())
        values = score(q, batch, part, facts)
        if values is not None:
            found["score"].append(values.ravel())
        done += len(p)
    joined = {name: np.concatenate(parts) if parts else None for name, parts in found.items()}
    means = {name: None if values is None else float(values.mean()) for name, values in joined.items()}
    scores = joined["score"]
    loss = means["kl"] if means["kl"] is not None else means["relative_error"]
    return {
        **means,
        "loss": loss,
        "agreement": None if facts.meaning == "values" and facts.task != "threshold" else means["agreement"],
        "score": None if scores is None else summary(scores, truth, facts),
    }


if __name__ == "__main__":
    main()
