"""The original model's outputs on a sample set, kept in the workspace: each further budget measures against them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from guidedq.artifacts.samples import SampleSet
from guidedq.files import write_tensors
from guidedq.ir.program import AbstractProgram, Batch
from guidedq.workspace import KEY_LENGTH, Workspace

KEPT_OUTPUTS_BYTES = 2 << 30
"""Disk that one model's outputs may take: 10,000 tokens of a vocabulary of 50,000. Beyond, the model runs again."""
OUTPUT = "output"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalOutputs:
    """Runs the original on a batch, or reads what it said of the same batch before.

    Attributes:
        program: The original.
        folder: Its entry in the workspace.
    """

    program: AbstractProgram
    folder: Path

    @staticmethod
    def of(program: AbstractProgram, digest: str, workspace: Workspace) -> OriginalOutputs:
        """Those of the model of this digest."""
        return OriginalOutputs(program=program, folder=workspace.entry("outputs", digest))

    def predict(self, batch: Batch) -> Tensor:
        """The output in float32, `[sample, ...]`. A disk that takes no more only means that nothing is kept."""
        file = self.folder / f"{SampleSet(inputs=batch).digest[:KEY_LENGTH]}.safetensors"
        with suppress(OSError, SafetensorError, KeyError):
            return load_file(file)[OUTPUT]
        output = self.program.predict(batch)
        kept = sum(other.stat().st_size for other in self.folder.glob("*.safetensors"))
        if kept + output.nbytes <= KEPT_OUTPUTS_BYTES:
            with suppress(OSError, SafetensorError):
                write_tensors(file, {OUTPUT: output})
        return output
