"""From an ONNX file to a Model: run by the interpreter, or forwards only by ONNX Runtime where it cannot be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from onnx import ModelProto
from torch import Tensor

from guidedq.errors import ModelError, SampleAxisError, UnsupportedOperatorError
from guidedq.frontend.onnx_file import open_onnx
from guidedq.frontend.onnx_graph import build_graph, find_head
from guidedq.frontend.onnx_inputs import input_specs
from guidedq.frontend.onnx_meaning import MainOutput, Meaning, find_meaning, main_output, with_logarithm
from guidedq.frontend.onnx_outputs import NO_SAMPLES, Outcast, describe_outputs, with_others, without
from guidedq.frontend.onnx_types import ValueType, infer_types
from guidedq.ir.forward_only import forward_only_program
from guidedq.ir.lifting import trial_batch
from guidedq.ir.model import InputSpec, Model, OutputSpec
from guidedq.ir.onnx_interpreter import (
    OnnxInterpreter,
    ParsedGraph,
    WeightedNode,
    find_weighted,
    parse_model,
    quantized,
)
from guidedq.ir.onnx_interpreter.islands import Island, find_islands
from guidedq.ir.onnx_interpreter.node import with_branches
from guidedq.ir.onnx_session import LARGEST_MESSAGE, message_bytes, open_session
from guidedq.ir.program import AbstractProgram, TorchProgram

SMALLEST_REPORTED = 256
"""Values of a tensor that is worth a word when it is left as it is."""
QUANTIZED_READERS = quantized.OPERATORS.keys()
"""Operators that read codes."""
CODES = (torch.int8, torch.uint8)
"""Whatever reads a matrix of these, it is one of codes."""


def load_onnx(path: Path) -> Model:
    """Load an ONNX file, with the tokenizer that lies beside it, if any.

    Parameters are the values of its floating point initializers and constants of one axis or more, each counted once.

    Raises:
        ModelError: the file or its external data are missing, damaged or of an unknown operator set; no output is a
            floating point tensor; or neither the interpreter nor ONNX Runtime can run it.
    """
    file = open_onnx(path)
    digest = file.digest
    file.load()
    types = infer_types(file.model)
    try:
        whole = parse_model(file.model)
    except ModelError as error:
        raise type(error)(f"{path}: {error}") from error
    reading = _read(file.model, whole, types, main_output(whole, types))
    main, outcasts = with_others(whole, file.model.graph, types, reading.output, reading.meaning)
    if main.together:
        reading, outcasts = _read_together(file.model, whole, types, main, outcasts)
    meaning, output = reading.meaning, reading.output
    tokenizer, told = _tokenizer(path.parent) if meaning.vocabulary_size else (None, ())
    return Model(
        name=path.stem,
        path=path,
        source="onnx",
        digest=digest,
        graph=build_graph(reading.parsed, reading.weighted, types, reading.head),
        program=reading.program(file.model),
        objective=meaning.objective,
        inputs=reading.inputs,
        parameters=_parameters(whole),
        tokenizer=tokenizer,
        vocabulary_size=meaning.vocabulary_size,
        context_length=meaning.context_length,
        notices=(*told, *_notices(whole, reading, describe_outputs(output, outcasts))),
        output=OutputSpec(name=output.name, probabilities=output.softmax, together=tuple(output.together)),
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """What a file is, once it is known which outputs count.

    Attributes:
        output: Those outputs.
        parsed: The nodes that they depend on.
        weighted: Those that read a site.
        islands: The nodes that ONNX Runtime runs while torch runs the others; `None` where it must run all.
        refusal: Why it must.
        meaning: What the model is.
        head: The site that gives the output of a language model or classifier.
        inputs: What the model takes.
    """

    output: MainOutput
    parsed: ParsedGraph
    weighted: Sequence[WeightedNode]
    islands: Mapping[str, Island] | None
    refusal: str
    meaning: Meaning
    head: str | None
    inputs: tuple[InputSpec, ...]

    def program(self, model: ModelProto) -> AbstractProgram:
        """What runs the model."""
        return _program(model, self.parsed, self.weighted, self.inputs, self.output, self.islands)


def _read(model: ModelProto, whole: ParsedGraph, types: Mapping[str, ValueType], output: MainOutput) -> _Reading:
    parsed = whole.pruned(*output.values)
    islands, refusal = _islands(parsed, types)
    weighted = find_weighted(parsed, forward_only=islands is None)
    head = find_head(parsed, weighted, output.value)
    meaning = find_meaning(parsed, weighted, types, output, head)
    predicts = meaning.objective.predicts
    return _Reading(
        output=replace(output, softmax=output.softmax and predicts),
        parsed=parsed,
        weighted=weighted,
        islands=islands,
        refusal=refusal,
        meaning=meaning,
        head=head.site if head and predicts else None,
        inputs=input_specs([entry for entry in model.graph.input if entry.name in parsed.inputs]),
    )


def _read_together(
    model: ModelProto,
    whole: ParsedGraph,
    types: Mapping[str, ValueType],
    main: MainOutput,
    outcasts: Sequence[Outcast],
) -> tuple[_Reading, tuple[Outcast, ...]]:
    """Several outputs; those that a trial run shows to have another first axis do not count."""
    reading = _read(model, whole, types, main)
    while main.together:
        try:
            reading.program(model).predict(trial_batch(reading.inputs))
            break
        except SampleAxisError as error:
            name = next(name for name, value in main.together.items() if error.output in (name, value))
            outcasts = (*outcasts, Outcast(name=name, reason=NO_SAMPLES))
            main = without(main, name)
            reading = _read(model, whole, types, main)
        except Exception:  # sizes of a trial need not suit the model: what is declared must do
            break
    return reading, tuple(outcasts)


def _islands(parsed: ParsedGraph, types: Mapping[str, ValueType]) -> tuple[Mapping[str, Island] | None, str]:
    """The nodes that ONNX Runtime runs while torch runs the others; `None` where it must run all, and why."""
    try:
        return find_islands(parsed, {name: kind.element for name, kind in types.items()}), ""
    except UnsupportedOperatorError as error:
        return None, str(error)


def _program(
    model: ModelProto,
    parsed: ParsedGraph,
    weighted: Sequence[WeightedNode],
    inputs: Sequence[InputSpec],
    output: MainOutput,
    islands: Mapping[str, Island] | None,
) -> AbstractProgram:
    if islands is None:
        weights = {entry.site: parsed.constants[entry.site] for entry in weighted}
        return forward_only_program(
            model, weights, weighted, inputs=inputs, outputs=output.names, softmax=output.softmax
        )
    if islands and message_bytes(model) <= LARGEST_MESSAGE:
        open_session(model)  # what the runtime refuses is refused now, not in the midst of the work
    parsed = with_logarithm(parsed, output)
    module = OnnxInterpreter(parsed, weighted, inputs=inputs, output=output.values, islands=islands)
    module.eval()
    return TorchProgram(module=module, aliases=module.aliases, values=module.values)


def _parameters(parsed: ParsedGraph) -> int:
    values: list[Tensor] = [value for value in parsed.constants.values() if value.is_floating_point() and value.ndim]
    return sum(value.numel() for value in values)


def _notices(whole: ParsedGraph, reading: _Reading, outputs: str | None) -> tuple[str, ...]:
    """What the user should know: what guides, outputs that do not count, weights left as they are, probabilities."""
    notices: list[str] = []
    parsed, islands, output = reading.parsed, reading.islands, reading.output
    if islands is None:
        notices.append(
            f"{reading.refusal} Guidance is forward-only: what each weight reads counts, not how the end loss answers."
        )
    elif islands:
        why, more = next(iter(islands.values())).refusal, f" ({len(islands)} such nodes)" if len(islands) > 1 else ""
        notices.append(
            f"{why} ONNX Runtime runs it{more}, and no gradient passes through: guidance is forward-only for weights "
            "that reach the output through it alone."
        )
    if outputs is not None:
        notices.append(outputs)
    idle = [name for name, value in whole.constants.items() if name not in parsed.constants and value.ndim > 1]
    if idle:
        notices.append(f"the output does not depend on {idle[0]!r} ({len(idle)} such weights): left as they are.")
    notices.extend(_left_alone(parsed, reading.weighted))
    if output.softmax:
        notices.append(f"the output {output.name!r} holds probabilities: their logarithm is taken.")
    return tuple(notices)


def _left_alone(parsed: ParsedGraph, weighted: Sequence[WeightedNode]) -> Iterator[str]:
    """The matrices that are no sites, by the kinds of operator that read them; and those that are quantized already."""
    sites = {entry.site for entry in weighted}
    readers: defaultdict[str, set[str]] = defaultdict(set)
    for node in with_branches(parsed.nodes):
        for name in node.inputs:
            readers[name].add(node.operator)
    left: defaultdict[tuple[str, bool], list[Tensor]] = defaultdict(list)
    for name, value in parsed.constants.items():
        if name not in sites and value.ndim > 1 and value.numel() >= SMALLEST_REPORTED:
            operators = ", ".join(sorted(readers[name])) or "control flow"
            if value.is_floating_point() or value.dtype in CODES or operators in QUANTIZED_READERS:
                left[operators, value.is_floating_point()].append(value)
    for (operators, floating), values in left.items():
        why = "no weights that can be quantized" if floating else "quantized already"
        count = f"tensors of {sum(value.numel() for value in values):,} values ({len(values)})"
        yield f"{count} that {operators} reads are {why}: left as they are."


def _tokenizer(folder: Path) -> tuple[Any, tuple[str, ...]]:
    """The tokenizer in the model's folder, or `None` with the reason why one that is there cannot be used."""
    if not (folder / "tokenizer.json").is_file():
        return None, ()
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False), ()
    except Exception as error:  # each kind of tokenizer fails in its own way
        return None, (
            f"its tokenizer cannot be loaded ({type(error).__name__}: {error}); text cannot be used as data.",
        )
