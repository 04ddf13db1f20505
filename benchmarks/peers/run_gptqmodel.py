"""GPTQModel: GPTQ with one width. OPTION: the group size."""

from __future__ import annotations

import os

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

from harness import Result, Task, linears, load, run, stored_bytes, tensors_in


def quantize(task: Task) -> Result:
    """Quantize, save, load again in plain torch."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    group = int(task.options[0]) if task.options else 64
    layers = list(linears(load(task.model)))
    model = GPTQModel.load(task.model, QuantizeConfig(bits=int(task.bits), group_size=group, device="cpu"))
    model.quantize([sequence.tolist() for sequence in task.tokens], batch_size=4)
    model.save(str(task.scratch))
    again = GPTQModel.load(str(task.scratch), device="cpu", backend=BACKEND.TORCH)
    size = stored_bytes(tensors_in(task.scratch), layers)
    return Result(model=again.model, bytes=size, settings=f"groups of {group}")


if __name__ == "__main__":
    run("gptqmodel", quantize)
