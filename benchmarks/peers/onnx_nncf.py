"""NNCF on an ONNX file; runs in an environment that has nncf, onnx and onnxruntime.

    python onnx_nncf.py SOURCE.onnx CALIBRATION.npz TARGET.onnx SETTINGS

SETTINGS: `int4`, or `int4 mixed` (half the layers at 8 bits, chosen by its sensitivity metric on the data), or
`int4 scale estimation`, in groups of 64; or `int8`. Look-ups are left alone. Without zero points at 4 bits: those that
NNCF 3.4 writes for an odd number of bytes a row are refused by ONNX Runtime 1.31.
"""

from __future__ import annotations

import sys

import nncf
import numpy as np
import onnx

SAMPLES, GROUP = 64, 64


def main() -> None:
    """Compress the weights."""
    source, calibration, target, *words = sys.argv[1:]
    settings = " ".join(words)
    model = onnx.load(source)
    known = {entry.name for entry in model.graph.input}
    with np.load(calibration) as arrays:
        data = {name: arrays[name] for name in arrays.files if name in known}
    count = min(SAMPLES, *(len(values) for values in data.values()))
    dataset = nncf.Dataset([{name: values[i : i + 1] for name, values in data.items()} for i in range(count)])
    alone = nncf.IgnoredScope(types=["Gather", "Embedding"], validate=False)
    options = {"mode": nncf.CompressWeightsMode.INT8_ASYM, "ignored_scope": alone}
    if settings.startswith("int4"):
        options |= {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": GROUP, "all_layers": True}
        if "mixed" in settings:
            metric = nncf.SensitivityMetric.MAX_ACTIVATION_VARIANCE
            options |= {"ratio": 0.5, "dataset": dataset, "sensitivity_metric": metric, "subset_size": count}
        elif "scale estimation" in settings:
            options |= {"ratio": 1.0, "dataset": dataset, "scale_estimation": True, "subset_size": count}
        else:
            options["ratio"] = 1.0
    onnx.save(nncf.compress_weights(model, **options), target)


if __name__ == "__main__":
    main()
