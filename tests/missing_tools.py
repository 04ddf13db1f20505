"""What happens to a test whose tools this machine lacks: it is skipped, but CI must have them."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip a test; fail it where `.ci/run` promised that all tools are there."""
    if os.environ.get("GUIDEDQ_TOOLS") == "required":
        pytest.fail(f"{reason}, and GUIDEDQ_TOOLS says that every tool is required")
    pytest.skip(reason)
