"""Makes `tests/` importable, so that tests share `tiny_models.py` and `tolerances.py`; pins threads.

Where there is no GPU, Triton's kernels run in its interpreter: it must know before anything imports it.

Shapes are checked at every call but in slow tests, which would take twice as long.

No example of a property has a deadline: machines that run tests are busy at times, and then a slow one proves nothing.
"""

import os

import pytest
import torch
from hypothesis import settings
from jaxtyping import config

settings.register_profile("guidedq", deadline=None)
settings.load_profile("guidedq")
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture of a test is made."""
    config.update("jaxtyping_disable", item.get_closest_marker("slow") is not None)
