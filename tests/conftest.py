"""Makes `tests/` importable, so that tests share `tiny_models.py` and `tolerances.py`; pins threads."""

import torch

torch.set_num_threads(1)
