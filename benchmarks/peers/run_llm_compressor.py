"""llm-compressor: GPTQ with one width, symmetric unless OPTION says `asymmetric`.

Groups of 64, and the next smaller size that divides a row where 64 does not.
"""

from __future__ import annotations

from harness import Result, Task, by_group_size, linears, load, run, stored_bytes, tensors_in, tokenizer


def quantize(task: Task) -> Result:
    """One shot; the saved tensors are counted, the weights taken from the model that was saved."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    model, symmetric = load(task.model), "asymmetric" not in task.options
    layers = linears(model)
    samples = [{"input_ids": s.tolist(), "attention_mask": [1] * len(s)} for s in task.tokens]
    groups = {
        f"groups of {size}": QuantizationScheme(
            targets=names,
            weights=QuantizationArgs(
                num_bits=int(task.bits), type="int", symmetric=symmetric, strategy="group", group_size=size
            ),
        )
        for size, names in by_group_size(layers).items()
    }
    recipe = GPTQModifier(config_groups=groups, ignore=["lm_head"])
    oneshot(
        model=model,
        dataset=Dataset.from_list(samples),
        recipe=recipe,
        max_seq_length=task.tokens.shape[1],
        num_calibration_samples=len(samples),
        tokenizer=tokenizer(task.model),
    )
    rounded = load(task.model)  # saving packs the weights in place
    for name, layer in linears(rounded).items():
        layer.weight.data = model.get_submodule(name).weight.data.clone()
    model.save_pretrained(task.scratch, save_compressed=True)
    size = stored_bytes(tensors_in(task.scratch), layers)
    return Result(
        model=rounded, bytes=size, settings=f"{', '.join(groups)}, {'symmetric' if symmetric else 'asymmetric'}"
    )


if __name__ == "__main__":
    run("llmcompressor", quantize)
