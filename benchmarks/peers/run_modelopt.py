"""ModelOpt: `auto_quantize` by gradients, integer weights of 2, 3, 4 and 8 bits in groups of 64, scales of 16 bits.

It computes with rounded weights and cannot write them at 2 or 3 bits: the bytes are what codes and scales would take.
"""

from __future__ import annotations

from typing import Any

from harness import Result, Task, linears, load, run

GROUP = 64


def quantize(task: Task) -> Result:
    """Choose and round in place."""
    import modelopt.torch.quantization as quantization

    model = load(task.model)
    layers = linears(model)
    data = [{"input_ids": sequence[None], "labels": sequence[None]} for sequence in task.tokens]
    scales = 16 / GROUP
    model, _ = quantization.auto_quantize(
        model,
        constraints={
            "effective_bits": task.bits - scales,
            "cost": {"excluded_module_name_patterns": ["*lm_head*"]},
        },
        quantization_formats=[weights_only(bits) for bits in (2, 3, 4, 8)],
        data_loader=data,
        forward_step=lambda module, batch: module(**batch),
        loss_func=lambda output, _batch: output.loss,
        disabled_layers=["*lm_head*"],
        num_calib_steps=len(data),
        num_score_steps=len(data),
        verbose=False,
    )
    size = 0
    for name in layers:
        module = model.get_submodule(name)
        chosen = module.weight_quantizer
        bits = chosen.num_bits + scales if chosen.is_enabled else 16
        size += int(module.weight.numel() * bits / 8)
    return Result(model=model, bytes=size, settings=f"auto_quantize, groups of {GROUP}")


def weights_only(bits: int) -> dict[str, Any]:
    """A format that rounds weights only."""
    quantizer = {"num_bits": bits, "block_sizes": {-1: GROUP}}
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": quantizer, "enable": True},
        ],
        "algorithm": "max",
    }


if __name__ == "__main__":
    run("nvidia-modelopt", quantize)
