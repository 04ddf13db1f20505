"""From an ONNX file to a Model: run by the interpreter, or forwards only by ONNX Runtime where it cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnx import ModelProto
from torch import Tensor

from guidedq.errors import ModelError, UnsupportedOperatorError
from guidedq.frontend.onnx_file import open_onnx
from guidedq.frontend.onnx_graph import build_graph, find_head
from guidedq.frontend.onnx_meaning import MainOutput, find_meaning, main_output, with_logarithm
from guidedq.frontend.onnx_types import ValueType, infer_types
from guidedq.ir.forward_only import forward_only_program
from guidedq.ir.model import InputSpec, Model, Objective, OutputSpec
from guidedq.ir.onnx_interpreter import OnnxInterpreter, ParsedGraph, WeightedNode, find_weighted, parse_model
from guidedq.ir.onnx_interpreter.tensors import dtype_of
from guidedq.ir.program import AbstractProgram, TorchProgram


def load_onnx(path: Path) -> Model:
    """Load an ONNX file, with the tokenizer that lies beside it, if any.

    Parameters are the values of its floating point initializers and constants of one axis or more, each counted once.

    Raises:
        ModelError: the file or its external data are missing, damaged or of an unknown operator set; no output is a
            floating point tensor; or neither the interpreter nor ONNX Runtime can run it.
    """
    file = open_onnx(path)
    digest = file.digest
    file.load_external_data()
    types = infer_types(file.model)
    try:
        whole = parse_model(file.model)
    except ModelError as error:
        raise type(error)(f"{path}: {error}") from error
    output = main_output(whole, types)
    parsed = whole.pruned(output.value)
    weighted = find_weighted(parsed)
    head = find_head(parsed, weighted, output.value)
    meaning = find_meaning(parsed, weighted, types, output, head)
    predicts = meaning.objective is not Objective.VALUES
    output = replace(output, softmax=output.softmax and predicts)
    program, notices = _program(file.model, parsed, weighted, types, output)
    tokenizer, told = _tokenizer(path.parent) if meaning.vocabulary_size else (None, ())
    return Model(
        name=path.stem,
        path=path,
        source="onnx",
        digest=digest,
        graph=build_graph(parsed, weighted, types, head.site if head and predicts else None),
        program=program,
        objective=meaning.objective,
        inputs=_inputs(parsed, types),
        parameters=_parameters(whole),
        tokenizer=tokenizer,
        vocabulary_size=meaning.vocabulary_size,
        context_length=meaning.context_length,
        notices=(*notices, *told, *_notices(whole, parsed, output)),
        output=OutputSpec(name=output.name, probabilities=output.softmax),
    )


def _program(
    model: ModelProto,
    parsed: ParsedGraph,
    weighted: Sequence[WeightedNode],
    types: Mapping[str, ValueType],
    output: MainOutput,
) -> tuple[AbstractProgram, tuple[str, ...]]:
    inputs = {spec.name: spec.dtype for spec in _inputs(parsed, types)}
    try:
        module = OnnxInterpreter(with_logarithm(parsed, output), weighted, inputs=inputs, output=output.value)
    except UnsupportedOperatorError as error:
        weights = {entry.site: parsed.constants[entry.site] for entry in weighted}
        program = forward_only_program(
            model, weights, weighted, inputs=tuple(inputs), output=output.name, softmax=output.softmax
        )
        notice = f"{error} Guidance is forward-only: what each weight reads counts, not how the end loss answers."
        return program, (notice,)
    module.eval()
    return TorchProgram(module=module, aliases=module.aliases, values=module.values), ()


def _inputs(parsed: ParsedGraph, types: Mapping[str, ValueType]) -> tuple[InputSpec, ...]:
    specs: list[InputSpec] = []
    for name in parsed.inputs:
        kind = types[name]
        if not kind.element or kind.shape is None:
            raise ModelError(f"the input {name!r} declares no tensor type and rank. Export the model again with both.")
        specs.append(InputSpec(name=name, dtype=dtype_of(kind.element), shape=kind.shape))
    return tuple(specs)


def _parameters(parsed: ParsedGraph) -> int:
    values: list[Tensor] = [value for value in parsed.constants.values() if value.is_floating_point() and value.ndim]
    return sum(value.numel() for value in values)


def _notices(whole: ParsedGraph, parsed: ParsedGraph, output: MainOutput) -> tuple[str, ...]:
    """What the user should know: outputs that do not count, weights that no guidance reaches, probabilities."""
    notices: list[str] = []
    if len(whole.outputs) > 1:
        others = ", ".join(name for name in whole.outputs if name != output.name)
        notices.append(f"the loss is about the output {output.name!r}; not about {others}.")
    idle = [name for name, value in whole.constants.items() if name not in parsed.constants and value.ndim > 1]
    if idle:
        notices.append(f"the output does not depend on {idle[0]!r} ({len(idle)} such weights): left as they are.")
    if output.softmax:
        notices.append(f"the output {output.name!r} holds probabilities: their logarithm is taken.")
    return tuple(notices)


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
