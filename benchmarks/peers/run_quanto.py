"""optimum-quanto: one scale a row at 8 bits, groups of 128 below; no calibration."""

from __future__ import annotations

import torch
from harness import Result, Task, linears, load, run, stored_bytes


def quantize(task: Task) -> Result:
    """Quantize and freeze."""
    from optimum import quanto

    model = load(task.model)
    layers = list(linears(model))
    quanto.quantize(
        model, weights={2: quanto.qint2, 4: quanto.qint4, 8: quanto.qint8}[int(task.bits)], exclude="*lm_head"
    )
    quanto.freeze(model)
    stored = [(name, tensor) for name, tensor in model.state_dict().items() if torch.is_tensor(tensor)]
    return Result(model=model, bytes=stored_bytes(stored, layers), settings="weights only")


if __name__ == "__main__":
    run("optimum-quanto", quantize)
