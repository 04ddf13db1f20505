"""ONNX Runtime on torch tensors, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

from guidedq.errors import ModelError

LARGEST_MESSAGE = 2_000_000_000
"""Bytes that a protobuf message can take, with some room."""


def message_bytes(model: ModelProto) -> int:
    """Bytes of its tensors and nodes, counted one by one: of a message that is too large the size cannot be asked."""
    return sum(item.ByteSize() for item in (*model.graph.initializer, *model.graph.node))


def open_session(model: ModelProto) -> Any:
    """An ONNX Runtime session on the CPU with as many threads as torch has.

    Raises:
        ModelError: the runtime refuses the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only: warnings about overridable initializers are meant for others
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises types of its own
        raise ModelError(f"neither torch nor ONNX Runtime can run the model: {error}") from error


def run_session(session: Any, asked: Sequence[str], feeds: Mapping[str, Any]) -> dict[str, Tensor]:
    """The outputs of these names.

    Raises:
        ModelError: the runtime fails.
    """
    try:
        results = session.run(list(asked), dict(feeds)) if asked else []
    except Exception as error:  # the runtime raises types of its own
        raise ModelError(f"ONNX Runtime failed: {error}") from error
    return {name: torch.from_numpy(np.array(result)) for name, result in zip(asked, results, strict=True)}


def as_array(values: Tensor, runtime_type: str) -> Any:
    """The tensor as the runtime wants it: the declared element type, contiguous."""
    names = {"tensor(float16)": "float16", "tensor(float)": "float32", "tensor(double)": "float64"}
    names |= {f"tensor({name})": name for name in ("int8", "int16", "int32", "int64", "uint8", "bool")}
    target = names.get(runtime_type)
    array = values.detach().contiguous().numpy()
    return array if target is None else array.astype(target, copy=False)
