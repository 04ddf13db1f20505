"""HQQ: groups of 64, no calibration. OPTION: the group size."""

from __future__ import annotations

import torch
from harness import Result, Task, linears, load, run, stored_bytes


def quantize(task: Task) -> Result:
    """Replace layer by layer."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    model, group = load(task.model), int(task.options[0]) if task.options else 64
    layers = linears(model)
    config = BaseQuantizeConfig(nbits=int(task.bits), group_size=group, axis=1)
    stored = []
    for name, layer in layers.items():
        packed = HQQLinear(layer, config, compute_dtype=torch.float32, device="cpu")
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, packed)
        stored += [(f"{name}.{key}", value) for key, value in packed.state_dict().items() if torch.is_tensor(value)]
    tables = [(name, tensor) for name, tensor in stored if tensor.numel() > 1]  # without the settings
    return Result(model=model, bytes=stored_bytes(tables, layers), settings=f"groups of {group}, axis 1")


if __name__ == "__main__":
    run("hqq", quantize)
