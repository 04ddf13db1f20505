"""A loaded model: its graph, the program that runs it, and what its inputs and outputs mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from guidedq.artifacts.samples import SampleSet
from guidedq.errors import ModelError
from guidedq.ir.graph import Graph, Site
from guidedq.ir.program import AbstractProgram


class Objective(StrEnum):
    """What the output is, and so what the end loss means."""

    LANGUAGE_MODEL = "language_model"
    """Logits `[sample, position, vocabulary]`, position t predicts token t + 1. Unit: nats per token."""
    CLASSIFIER = "classifier"
    """Logits `[sample, class]`. Unit: nats per sample."""
    VALUES = "values"
    """Any other tensor, `[sample, ...]`. Unit: half the squared output error over the squared output, per sample."""
    JOINT_VALUES = "joint_values"
    """Several tensors, `[sample, output, value]` (`ir.joint_output`). Unit: that of values, mean over the outputs."""

    @property
    def predicts(self) -> bool:
        """Whether the output is a distribution over labels."""
        return self in (Objective.LANGUAGE_MODEL, Objective.CLASSIFIER)

    @property
    def unit(self) -> str:
        """The unit of the loss, for people."""
        units = {"language_model": "nats/token", "classifier": "nats/sample"}
        return units.get(self.value, "relative squared error")

    def units(self, samples: SampleSet) -> int:
        """How many tokens (of a language model; only real ones) or samples a set stands for."""
        if self is not Objective.LANGUAGE_MODEL:
            return len(samples)
        tokens = next(iter(samples.inputs.values()))
        return int(samples.mask.sum()) if samples.mask is not None else tokens.shape[0] * tokens.shape[1]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One named input, as stages see it: the first axis is the sample.

    Attributes:
        name: Its name.
        dtype: Its dtype.
        shape: `None` where any size goes.
        sample_axis: The axis of the samples in what the model itself takes; `None` if it has none there, so that all
            samples must give it the same values (a sampling rate, say).
        batch: How many samples the model takes at once, where its file fixes that.
        last: The token that every sample has to end with, where the model looks for it.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]
    sample_axis: int | None = 0
    batch: int | None = None
    last: int | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec:
    """The output of the model's file that the program returns, or several that it returns joined.

    Attributes:
        name: Its name in the file; of several, that of the first by the rules for one.
        probabilities: Whether the file's output holds probabilities; the program then returns their logarithm.
        together: The names of the several outputs, in the file's order; none where there is only the one.
    """

    name: str
    probabilities: bool = False
    together: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs that count."""
        return self.together or (self.name,)


SourceKind = Literal["hugging_face", "onnx", "torch_export"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A trained model, lifted: what every stage gets to see of it.

    Attributes:
        name: Short name for people (the folder's or file's).
        path: The folder or file it was loaded from.
        source: Which frontend loaded it.
        digest: SHA-256 of its content (weights, graph, configuration), hex; the folder's name does not matter.
        graph: Operators and sites.
        program: Runs it.
        objective: What the output means.
        inputs: The named inputs that `program` takes; optional inputs are left out.
        parameters: Number of parameters, tied ones counted once.
        tokenizer: A transformers tokenizer, if the model has one.
        vocabulary_size: Token ids are below this, if the model takes tokens.
        context_length: Longest sequence that it takes, if there is a limit.
        notices: What the user should know about how it was loaded.
        output: The output that the program returns, where its file names its outputs or has several.
    """

    name: str
    path: Path
    source: SourceKind
    digest: str
    graph: Graph
    program: AbstractProgram
    objective: Objective
    inputs: tuple[InputSpec, ...]
    parameters: int
    tokenizer: Any = None
    vocabulary_size: int | None = None
    context_length: int | None = None
    notices: tuple[str, ...] = ()
    output: OutputSpec | None = None

    def samples_at_once(self, samples: SampleSet) -> int | None:
        """How many of these samples it takes at once, `None` if there is no limit.

        That is what its file fixes, or one, where an input without a sample axis differs from sample to sample.
        """
        fixed = next((spec.batch for spec in self.inputs if spec.batch is not None), None)
        shared = [samples.inputs[spec.name] for spec in self.inputs if spec.sample_axis is None]
        return fixed if all(bool((values == values[:1]).all()) for values in shared) else 1

    def matrix(self, site: Site) -> Float[Tensor, "out in"]:
        """The site's weight as a float32 matrix.

        Raises:
            ModelError: a weight is NaN or infinite.
        """
        matrix = site.matrix(self.program.parameter(site.name))
        if not bool(torch.isfinite(matrix).all()):
            bad = int((~torch.isfinite(matrix)).sum())
            raise ModelError(
                f"{site.name}: {bad} of {site.parameters} weights are NaN or infinite. Mend the checkpoint."
            )
        return matrix

    def with_graph(self, graph: Graph) -> Model:
        """The same model under a rewritten graph."""
        return replace(self, graph=graph)


def check_sites(model: Model) -> None:
    """Refuse a model with no quantizable site.

    Raises:
        ModelError: as said.
    """
    if not model.graph.quantizable:
        told = "".join(f" {notice[:1].upper()}{notice[1:]}" for notice in model.notices)
        wanted = "linear, convolution or embedding weight in floats"
        raise ModelError(f"{model.name} has no quantizable site: no {wanted} was found.{told}")


def check_weights(model: Model, sites: Sequence[Site]) -> None:
    """Refuse a model with a weight that is not a finite number.

    Raises:
        ModelError: as said, naming the site.
    """
    for site in sites:
        model.matrix(site)
