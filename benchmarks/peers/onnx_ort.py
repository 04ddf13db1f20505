"""ONNX Runtime's own quantizers on an entry of the zoo.

    python onnx_ort.py ENTRY TARGET.onnx NAME=VALUE...

`nbits=default|hqq|k-quant|rtn|gptq` is MatMulNBitsQuantizer with that algorithm, `bits`, `block`, `level` (accuracy
level: 4 rounds inputs to int8, the fast path) and, with `gather=1`, look-ups too. `dynamic=all|matrix` is
quantize_dynamic, `static=METHOD` quantize_static in QDQ form with that calibration method and weights by channel, after
its own preparation of the file.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime.quantization as quantization
from onnxruntime.quantization import matmul_nbits_quantizer as nbits
from onnxruntime.quantization.shape_inference import quant_pre_process

sys.path.insert(0, str(Path(__file__).parents[1]))

from zoo.entries import Entry, batches, read_entry
from zoo.prepared import prepared

CALIBRATION_SAMPLES = 128
"""As many as guidedq takes for its histograms."""
BATCH = 8
"""Divides the calibration samples: ONNX Runtime's percentiles want batches of one size."""
GPTQ_SAMPLES = 64


class Reader(quantization.CalibrationDataReader):
    """Calibration samples, some at a time."""

    def __init__(self, entry: Entry, count: int, size: int) -> None:
        self.entry, self.count, self.size = entry, count, size
        self.rewind()

    def rewind(self) -> None:
        """From the start."""
        data = self.entry.arrays("calibration", self.count)
        self.left: Iterator[dict[str, np.ndarray]] = batches(self.entry.facts, data, self.size)

    def get_next(self) -> dict[str, np.ndarray]:
        """The next samples."""
        return next(self.left, None)  # pyright: ignore[reportReturnType]  (None ends the data)

    def __deepcopy__(self, memo: dict[int, Any]) -> Reader:
        """ONNX Runtime's GPTQ copies its reader for every pass."""
        return Reader(self.entry, self.count, self.size)


def main() -> None:
    """Quantize."""
    entry, target = read_entry(Path(sys.argv[1])), Path(sys.argv[2])
    words = dict(word.split("=", 1) for word in sys.argv[3:])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        onnx.save(prepared(onnx.load(str(entry.model))), str(source))
        if "nbits" in words:
            blocks(entry, source, target, words)
        elif "dynamic" in words:
            only = {"op_types_to_quantize": ["MatMul", "Gemm"]} if words["dynamic"] == "matrix" else {}
            quantization.quantize_dynamic(str(source), str(target), per_channel=True, **only)
        else:
            static(entry, source, target, words)


def blocks(entry: Entry, source: Path, target: Path, words: dict[str, str]) -> None:
    """MatMulNBitsQuantizer."""
    bits, size, level = int(words["bits"]), int(words["block"]), int(words.get("level", 0)) or None
    kinds = {"op_types_to_quantize": ("MatMul", "Gather")} if "gather" in words else {}
    algorithm = words["nbits"]
    if algorithm == "default":
        config = nbits.DefaultWeightOnlyQuantConfig(block_size=size, bits=bits, accuracy_level=level, **kinds)
    elif algorithm == "hqq":
        config = nbits.HQQWeightOnlyQuantConfig(block_size=size, bits=bits, **kinds)
    elif algorithm == "gptq":
        reader = Reader(entry, GPTQ_SAMPLES, 1)
        config = nbits.GPTQWeightOnlyQuantConfig(calibration_data_reader=reader, block_size=size, mse=True)
    else:
        config = {"k-quant": nbits.KQuantWeightOnlyQuantConfig, "rtn": nbits.RTNWeightOnlyQuantConfig}[algorithm]()
    quantizer = nbits.MatMulNBitsQuantizer(
        str(source), bits=bits, block_size=size, accuracy_level=level, algo_config=config
    )
    quantizer.process()
    made: Any = quantizer.model  # an ONNXModel once it has been processed
    made.save_model_to_file(str(target), False)


def static(entry: Entry, source: Path, target: Path, words: dict[str, str]) -> None:
    """quantize_static."""
    count = len(next(iter(entry.arrays("calibration", CALIBRATION_SAMPLES).values())))
    size = min(BATCH, entry.facts.batch)
    ready = source.with_name("prepared.onnx")
    try:
        quant_pre_process(str(source), str(ready))
    except Exception:  # its symbolic shapes do not know every graph; the documentation says to leave them out then
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(ready),
        str(target),
        Reader(entry, count // size * size, size),
        calibrate_method=quantization.CalibrationMethod[words["static"]],
        per_channel=True,
        reduce_range="reduce" in words,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt4 if words.get("weights") == "4" else quantization.QuantType.QInt8,
    )


if __name__ == "__main__":
    main()
