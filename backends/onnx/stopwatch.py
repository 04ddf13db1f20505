"""Timing with ONNX Runtime: kernels by its own profiler, whole models by the clock; always several in turns."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from onnx import ModelProto, TensorProto, helper

from guidedq.errors import ProfileError

from .kernel_models import IR_VERSION, OPSET, Feeds

SECONDS_PER_SHAPE = 0.3
"""For all kernels of one shape together: some hundred calls of a small one."""
FEWEST_ROUNDS, MOST_ROUNDS = 6, 200
MOST_CALLS = 2000
"""Of a whole model."""
WARM_ROUNDS = 2
"""Not counted: the first calls allocate, and wake what slept."""
SECONDS_PER_COMPARISON = 2.0
"""For whole models in turns."""
LAYOUT_OPERATORS = ("ReorderInput", "ReorderOutput")
"""Around a convolution that stands alone; between convolutions there are none."""
TICK = 1e-6
"""Of the profiler."""
LEAST_SECONDS = 1e-7
"""Of any kernel: what is less cannot be told."""


def kernel_seconds(models: Sequence[tuple[ModelProto, Feeds]], threads: int) -> list[float]:
    """Seconds of one call of each model's kernels, without what surrounds a call, the models taking turns.

    Raises:
        ProfileError: the runtime refuses one.
    """
    timed = (_nothing(), *models)
    with tempfile.TemporaryDirectory() as folder:
        sessions = [
            session_of(model.SerializeToString(), threads, profile=Path(folder) / str(number))
            for number, (model, _) in enumerate(timed)
        ]
        turns = _in_turns([_caller(session, feeds) for session, (_, feeds) in zip(sessions, timed, strict=True)])
        profiles = [_profiled(Path(session.end_profiling())) for session in sessions]
    own, *found = (
        typical([sum(call) * turn.share(threads) for call, turn in zip(profile, mine, strict=True)])
        for profile, mine in zip(profiles, turns, strict=True)
    )
    return [
        max(seconds - own * len(profile[0]), LEAST_SECONDS)
        for seconds, profile in zip(found, profiles[1:], strict=True)
    ]


def call_seconds(calls: Sequence[Callable[[], Any]], threads: int) -> tuple[float, ...]:
    """Seconds of each of the calls by the clock, taking turns."""
    turns = _in_turns(calls, SECONDS_PER_COMPARISON, MOST_CALLS)
    return tuple(typical([turn.wall * turn.share(threads) for turn in mine]) for mine in turns)


def session_of(model: bytes | str, threads: int, profile: Path | None = None) -> Any:
    """A session with so many threads and all optimizations; with a profile in a file of this beginning, if asked.

    Raises:
        ProfileError: the runtime refuses the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exceptions have no common class
        raise ProfileError(f"ONNX Runtime {onnxruntime.__version__} refuses a model to be timed: {error}") from error


def typical(seconds: Sequence[float]) -> float:
    """The mean of the faster half: what other work on the machine slows down is left out."""
    faster = sorted(seconds)[: (len(seconds) + 1) // 2]
    return sum(faster) / len(faster)


def runtime_name() -> str:
    """The runtime and its version."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """One call: seconds by the clock, and seconds that the calling thread was given the processor."""

    wall: float
    worked: float

    def share(self, threads: int) -> float:
        """Of the call, the part in which no other process was in its place; known where one thread does all work."""
        return min(1.0, self.worked / self.wall) if threads == 1 else 1.0


def _caller(session: Any, feeds: Feeds) -> Callable[[], Any]:
    return lambda: session.run(None, dict(feeds))


def _in_turns(
    calls: Sequence[Callable[[], Any]], budget: float = SECONDS_PER_SHAPE, most: int = MOST_ROUNDS
) -> list[list[_Turn]]:
    """Every counted call, as many rounds as the budget pays for."""
    turns: list[list[_Turn]] = [[] for _ in calls]
    rounds, done = FEWEST_ROUNDS, 0
    while done < WARM_ROUNDS + rounds:
        for mine, call in zip(turns, calls, strict=True):
            start, worked = time.perf_counter(), time.thread_time()
            call()
            mine.append(_Turn(wall=time.perf_counter() - start, worked=time.thread_time() - worked))
        done += 1
        if done == WARM_ROUNDS:
            one_round = sum(mine[-1].wall for mine in turns)
            rounds = max(FEWEST_ROUNDS, min(most, int(budget / one_round)))
    return [mine[WARM_ROUNDS:] for mine in turns]


def _profiled(path: Path) -> list[tuple[float, ...]]:
    """Seconds that each kernel of each counted call took; what the profiler itself takes is in them."""
    by_node: Mapping[str, list[float]] = defaultdict(list)
    for event in json.loads(path.read_text(encoding="utf-8")):
        told = event.get("args", {})
        if str(event["name"]).endswith("_kernel_time") and told.get("op_name") not in LAYOUT_OPERATORS:
            by_node[event["name"]].append(event["dur"] * TICK)
    return list(zip(*by_node.values(), strict=True))[WARM_ROUNDS:]


def _nothing() -> tuple[ModelProto, Feeds]:
    """A model whose one kernel has nothing to do: what is told of it is the profiler's own time."""
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "nothing", [given], [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return model, {"x": np.zeros(1, dtype=np.float32)}
