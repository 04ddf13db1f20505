"""Makes `tests/` importable, so that tests share `tiny_models.py` and `tolerances.py`; pins threads.

No example of a property has a deadline: machines that run tests are busy at times, and then a slow one proves nothing.
"""

import torch
from hypothesis import settings

settings.register_profile("guidedq", deadline=None)
settings.load_profile("guidedq")
torch.set_num_threads(1)
