"""Opening what was written with stock ONNX Runtime, and looking at what it makes of it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto
from torch import Tensor

from guidedq.errors import ArtifactError, BackendError
from guidedq.ir.model import OutputSpec
from guidedq.ir.program import Batch

from .emission import MODEL_FILE
from .settings import Settings
from .unpacking import DOMAIN, UNPACKING_OPERATORS

MAIN_OUTPUT = "logits"
INTEGER_KERNELS = frozenset({"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"})
"""What its optimizer makes of convolutions and matrix products between rounded values."""


def open_session(folder: Path) -> Any:
    """A session of ONNX Runtime with its default options.

    Raises:
        ArtifactError: there is no model file in `folder`, or the runtime refuses it.
    """
    import onnxruntime

    path = folder / MODEL_FILE
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no {MODEL_FILE}: it is not a folder that the onnx backend wrote.")
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exceptions have no common class
        raise ArtifactError(f"{path}: ONNX Runtime {onnxruntime.__version__} refuses it: {error}") from error


def open_function(folder: Path, wanted: OutputSpec | None) -> Callable[[Batch], Tensor]:
    """The model as a function from named inputs to its main output in float32.

    Args:
        folder: Where the model file lies.
        wanted: The output that the original's program returns, its logarithm if it holds probabilities; of an exported
            module the one called `logits`, or the first.
    """
    session = open_session(folder)
    known = {entry.name for entry in session.get_inputs()}
    outputs = [entry.name for entry in session.get_outputs()]
    output = MAIN_OUTPUT if MAIN_OUTPUT in outputs else outputs[0]
    if wanted is not None and wanted.name in outputs:
        output = wanted.name

    def run(batch: Batch) -> Tensor:
        feeds = {name: values.numpy() for name, values in batch.items() if name in known}
        values = torch.from_numpy(np.asarray(session.run([output], feeds)[0])).float()
        if wanted is None or not wanted.probabilities:
            return values
        return values.clamp(min=torch.finfo(torch.float32).tiny).log()

    return run


def check_model(path: Path, source: Path | None) -> tuple[str, ...]:
    """Check the file against the ONNX standard; a source that is itself not valid is only worth a notice.

    Raises:
        BackendError: it is not valid, though the source is, or there is none.
    """
    fault = _fault(path)
    if fault is None:
        return ()
    if source is not None and _fault(source) is not None:
        return (f"the model breaks the ONNX standard, as its source does: {fault}",)
    raise BackendError(f"{path.name} is not a valid ONNX model: {fault}")


def _fault(path: Path) -> str | None:
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError) as error:
        return str(error)
    return None


def notices_of(path: Path, settings: Settings, integer_nodes: int = 0) -> tuple[str, ...]:
    """What the runtime makes of the model, in words.

    Args:
        path: The model file.
        settings: How it was written.
        integer_nodes: How many of its nodes were meant to be computed in integers.

    Raises:
        BackendError: the runtime refuses the model.
    """
    model = loaded_by_runtime(path)
    left = unfolded(model, onnx.load_model(str(path), load_external_data=False))
    kinds = Counter(
        f"{node.op_type} {_option(node, 'bits')} bits"
        for node in model.graph.node
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized")
    )
    notices: list[str] = []
    if kinds:
        notices.append(
            "ONNX Runtime runs " + ", ".join(f"{number} x {kind}" for kind, number in sorted(kinds.items())) + "."
        )
    if any(kind.startswith("MatMulNBits") for kind in kinds):
        rounding = "activations are rounded to int8 per block" if settings.integer else "activations stay in float"
        notices.append(f"MatMulNBits accuracy_level is {settings.accuracy_level}: {rounding}.")
    if integer_nodes:
        notices.append(integer_notice(model, integer_nodes))
    if left:
        notices.append(f"{sum(left.values())} nodes that unpack weights were not folded at load; calls will be slow.")
    return tuple(notices)


def integer_notice(loaded: ModelProto, integer_nodes: int) -> str:
    """Which integer kernels are in the loaded graph, and how many nodes that were meant to become one did not."""
    kernels = Counter(node.op_type for node in loaded.graph.node if node.op_type in INTEGER_KERNELS)
    listed = ", ".join(f"{number} x {kind}" for kind, number in sorted(kernels.items())) or "nothing"
    missing = integer_nodes - kernels.total()
    rest = f"; {missing} more nodes stay in float, rounded all the same" if missing > 0 else ""
    return f"ONNX Runtime computes in integers: {listed}{rest}."


def loaded_by_runtime(path: Path) -> ModelProto:
    """The graph that ONNX Runtime runs, after its own optimization, without the tensors' values."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(optimized)
        options.log_severity_level = 3
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own exceptions have no common class
            raise BackendError(f"ONNX Runtime {onnxruntime.__version__} refuses {path.name}: {error}") from error
        return onnx.load_model(str(optimized), load_external_data=False)


def unfolded(loaded: ModelProto, written: ModelProto) -> Counter[str]:
    """Nodes of unpacking that are left in the loaded graph, by operator; those of the model itself are not counted."""
    own = Counter(node.op_type for node in written.graph.node if node.domain != DOMAIN)
    left = Counter(node.op_type for node in loaded.graph.node if node.op_type in UNPACKING_OPERATORS)
    return left - own


def _option(node: onnx.NodeProto, name: str) -> Any:
    return next((onnx.helper.get_attribute_value(item) for item in node.attribute if item.name == name), None)
