"""Opening what was written with stock ONNX Runtime, and looking at what it makes of it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto
from torch import Tensor

from guidedq.artifacts.runtime import RuntimeFacts
from guidedq.errors import ArtifactError, BackendError
from guidedq.ir.feeding import fed, in_turns, sample_count
from guidedq.ir.joint_output import one_output
from guidedq.ir.model import InputSpec, OutputSpec
from guidedq.ir.program import Batch

from .cached import empty_cache
from .emission import MODEL_FILE
from .reading_back import INTEGER_KERNELS, runtime_facts
from .settings import INTEGER_LEVEL
from .unpacking import RUNTIME_DOMAIN

MAIN_OUTPUT = "logits"
LAYOUT_OPTIMIZER = "NchwcTransformer"
"""Lays convolutions out for some processors; the graph read back is the same on all without it."""


def open_session(folder: Path, accuracy_level: int = INTEGER_LEVEL) -> Any:
    """A session of ONNX Runtime with its default options.

    Args:
        folder: Where the model file lies.
        accuracy_level: Of matrix products that the runtime makes of DequantizeLinear; those in the file say their own.

    Raises:
        ArtifactError: there is no model file in `folder`, or the runtime refuses it.
    """
    import onnxruntime

    path = folder / MODEL_FILE
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no {MODEL_FILE}: it is not a folder that the onnx backend wrote.")
    try:
        return onnxruntime.InferenceSession(
            str(path), session_options(accuracy_level), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the runtime's own exceptions have no common class
        raise ArtifactError(f"{path}: ONNX Runtime {onnxruntime.__version__} refuses it: {error}") from error


def session_options(accuracy_level: int) -> Any:
    """The runtime's default options, but for the accuracy level of products behind DequantizeLinear."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if accuracy_level != INTEGER_LEVEL:  # which is the default
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    return options


def open_function(
    folder: Path, inputs: Sequence[InputSpec], wanted: OutputSpec | None, accuracy_level: int = INTEGER_LEVEL
) -> Callable[[Batch], Tensor]:
    """The model as a function from named inputs to its main output in float32, several outputs joined.

    Args:
        folder: Where the model file lies.
        inputs: What the original takes; the file may lack some that its output does not depend on.
        wanted: What the original's program returns, its logarithm if it holds probabilities; of an exported module the
            output called `logits`, or the first.
        accuracy_level: As for `open_session`.
    """
    session = open_session(folder, accuracy_level)
    known = {entry.name for entry in session.get_inputs()}
    outputs = [entry.name for entry in session.get_outputs()]
    asked = [MAIN_OUTPUT if MAIN_OUTPUT in outputs else outputs[0]]
    if wanted is not None and set(wanted.names) <= set(outputs):
        asked = list(wanted.names)

    def run_part(batch: Batch) -> Batch:
        feeds = {name: values.contiguous().numpy() for name, values in fed(inputs, batch).items() if name in known}
        if known - feeds.keys():
            feeds = empty_cache(session, batch) | feeds
        try:
            found = session.run(asked, feeds)
            return {
                name: torch.from_numpy(np.asarray(values)).float() for name, values in zip(asked, found, strict=True)
            }
        except Exception as error:  # the runtime's own exceptions have no common class
            if (count := sample_count(batch)) == 1 or any(spec.batch for spec in inputs):
                raise ArtifactError(f"ONNX Runtime fails on {folder / MODEL_FILE}: {error}") from error
            # some of its kernels, RotaryEmbedding's for one, take no batch
            parts = [run_part({name: values[index : index + 1] for name, values in batch.items()})
                     for index in range(count)]  # fmt: skip
            return {name: torch.cat([part[name] for part in parts]) for name in asked}

    def run(batch: Batch) -> Tensor:
        values = one_output(in_turns(inputs, batch, run_part), sample_count(batch))
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
    """What is wrong with a file: of types and shapes, too, where all operators are the standard's."""
    try:
        imported = {entry.domain for entry in onnx.load_model(str(path), load_external_data=False).opset_import}
        onnx.checker.check_model(str(path), full_check=RUNTIME_DOMAIN not in imported)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        return str(error)
    return None


def facts_of(path: Path, tensors: Mapping[str, str], accuracy_level: int) -> RuntimeFacts:
    """What the runtime makes of the model.

    Args:
        path: The model file.
        tensors: The site that each stored tensor belongs to.
        accuracy_level: As for `open_session`.

    Raises:
        BackendError: the runtime refuses the model.
    """
    import onnxruntime

    loaded = loaded_by_runtime(path, accuracy_level)
    written = onnx.load_model(str(path), load_external_data=False)
    for tensor in written.graph.initializer:
        tensor.ClearField("raw_data")  # what it does not need is not copied
    return runtime_facts(written, loaded, tensors, f"ONNX Runtime {onnxruntime.__version__}")


def notices_of(facts: RuntimeFacts, integer_nodes: int = 0) -> tuple[str, ...]:
    """What the user should know about how the runtime runs the model.

    Args:
        facts: What was read back.
        integer_nodes: How many of its nodes were meant to be computed in integers.
    """
    notices: list[str] = []
    levels = {node.accuracy_level for node in facts.kinds if node.accuracy_level is not None}
    for level in sorted(levels):
        rounding = (
            "activations are rounded to int8 per block" if level == INTEGER_LEVEL else "activations stay in float"
        )
        notices.append(f"MatMulNBits accuracy_level is {level}: {rounding}.")
    if integer_nodes:
        notices.append(integer_notice(facts, integer_nodes))
    if facts.unfolded_nodes:
        notices.append(f"{facts.unfolded_nodes} nodes that unpack weights are not folded at load: each call runs them.")
    return tuple(notices)


def integer_notice(facts: RuntimeFacts, integer_nodes: int) -> str:
    """Which integer kernels run sites, and how many nodes that were meant to become one did not."""
    known = {kernel for kernels in INTEGER_KERNELS.values() for kernel in kernels}
    kernels = Counter[str]()
    for node, number in facts.kinds.items():
        kernels.update({node.operator: number} if node.operator in known else {})
    listed = ", ".join(f"{number} x {kind}" for kind, number in sorted(kernels.items())) or "nothing"
    missing = integer_nodes - kernels.total()
    rest = f"; {missing} more nodes stay in float, rounded all the same" if missing > 0 else ""
    return f"ONNX Runtime computes in integers: {listed}{rest}."


def loaded_by_runtime(path: Path, accuracy_level: int = INTEGER_LEVEL) -> ModelProto:
    """The graph that ONNX Runtime runs, after its own optimization, without the tensors' values and their layout."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = session_options(accuracy_level)
        options.optimized_model_filepath = str(optimized)
        options.log_severity_level = 3
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        try:
            onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=[LAYOUT_OPTIMIZER]
            )
        except Exception as error:  # the runtime's own exceptions have no common class
            raise BackendError(f"ONNX Runtime {onnxruntime.__version__} refuses {path.name}: {error}") from error
        return onnx.load_model(str(optimized), load_external_data=False)
