"""Makes `tests/` importable, so that tests share `tiny_models.py` and `tolerances.py`; pins threads.

Where there is no GPU, Triton's kernels run in its interpreter: it must know before anything imports it.

No example of a property has a deadline: machines that run tests are busy at times, and then a slow one proves nothing.
"""

import os

import torch
from hypothesis import settings

settings.register_profile("guidedq", deadline=None)
settings.load_profile("guidedq")
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
