"""JSON that every reader takes: Python's own writes `Infinity`, which is none."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast


def json_text(content: Any) -> str:
    """Plain values as JSON: an infinite number is written as the largest float64, what is no number as null."""
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def read_json(text: str) -> Any:
    """The inverse of `json_text`, but for what was no number."""
    return json.loads(text, parse_float=_float)


def _finite(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return None if math.isnan(content) else math.copysign(sys.float_info.max, content)
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in cast("Mapping[str, Any]", content).items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in cast("Sequence[Any]", content)]
    return content


def _float(text: str) -> float:
    value = float(text)
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value
