"""NNCF on an entry of the zoo; runs in an environment that has nncf, onnx and onnxruntime.

    python onnx_nncf.py ENTRY TARGET.onnx NAME=VALUE...

`mode` is that of compress_weights (groups of 64 below 8 bits, or what it adjusts that to; look-ups and the last
layer in int8 unless `all=1`), with `awq`, `scale` and `ratio` (the share of layers in that mode, chosen by its
sensitivity metric on the data). `static=1` is quantize, with fast or `accurate` bias correction.
Without zero points at 4 bits: those that NNCF 3.4 writes for an odd number of bytes a row are refused by ONNX Runtime.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nncf
import onnx
import onnx.shape_inference

sys.path.insert(0, str(Path(__file__).parents[1]))

from zoo.entries import Entry, batches, read_entry
from zoo.prepared import prepared

SAMPLES, GROUP = 128, 64
OLDEST_OPSET = {"INT8": 13, "INT4": 21}
"""Where ONNX has DequantizeLinear for these."""


def main() -> None:
    """Compress."""
    entry, target = read_entry(Path(sys.argv[1])), Path(sys.argv[2])
    words = dict(word.split("=", 1) for word in sys.argv[3:])
    if "static" in words:
        made = nncf.quantize(
            model_of(entry, 13),
            data_of(entry),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=SAMPLES,
            fast_bias_correction="accurate" not in words,
        )
    else:
        made = compressed(entry, words)
    onnx.save(made, str(target))


def data_of(entry: Entry) -> nncf.Dataset:
    """Calibration samples, one at a time."""
    return nncf.Dataset(list(batches(entry.facts, entry.arrays("calibration", SAMPLES), 1)))


def model_of(entry: Entry, opset: int) -> onnx.ModelProto:
    """The model, in an opset that has what it will be written in, with shapes."""
    return onnx.shape_inference.infer_shapes(prepared(onnx.load(str(entry.model)), opset))


def compressed(entry: Entry, words: dict[str, str]) -> onnx.ModelProto:
    """compress_weights; layers whose weight it does not find, as the graph transposes it first, are left in float."""
    left: list[str] = []
    while True:
        model = model_of(entry, OLDEST_OPSET[words["mode"][:4]])
        try:
            scope = nncf.IgnoredScope(names=left) if left else None
            return nncf.compress_weights(model, ignored_scope=scope, **options_of(entry, words))
        except nncf.ValidationError as error:
            lost = str(error).rsplit(" ", 1)[-1]
            more = [node.name for node in model.graph.node if lost in node.input and node.name not in left]
            if not more:
                raise
            left += more


def options_of(entry: Entry, words: dict[str, str]) -> dict[str, Any]:
    """Of compress_weights."""
    mode = nncf.CompressWeightsMode[words["mode"]]
    if words["mode"].startswith("INT8"):
        return {"mode": mode}
    fallback = nncf.GroupSizeFallbackMode.ADJUST
    options: dict[str, Any] = {"mode": mode, "ratio": float(words.get("ratio", 1)), "all_layers": "all" in words}
    options |= {"group_size": GROUP}
    options |= {"advanced_parameters": nncf.AdvancedCompressionParameters(group_size_fallback_mode=fallback)}
    if {"awq", "scale", "ratio"} & set(words):
        options |= {"dataset": data_of(entry), "subset_size": SAMPLES}
        options |= {"awq": "awq" in words, "scale_estimation": "scale" in words}
        if "ratio" in words:
            options["sensitivity_metric"] = nncf.SensitivityMetric.MAX_ACTIVATION_VARIANCE
    return options


if __name__ == "__main__":
    main()
