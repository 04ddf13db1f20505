"""From a torch.export program (.pt2) to a Model."""

from __future__ import annotations

import hashlib
import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx.graph import CodeGen

from guidedq.errors import ModelError
from guidedq.frontend.exported_norms import compute_normed_weights
from guidedq.frontend.exported_operators import replace_operators
from guidedq.frontend.exported_outputs import counted_outputs, join_outputs, keep_first_output, output_names
from guidedq.frontend.pt2_archive import check_archive
from guidedq.ir.graph import Graph, UseKind
from guidedq.ir.lifting import WeightedModule, lift, trial_batch
from guidedq.ir.model import InputSpec, Model, Objective, OutputSpec
from guidedq.ir.program import TorchProgram
from guidedq.ir.tracing import held_at

ATEN = torch.ops.aten
LONGEST_CONTEXT = 1 << 30
"""torch writes huge upper bounds where an axis has none."""
TRAINING_FLAG = {ATEN.dropout.default: 2, ATEN.batch_norm.default: 5, ATEN.native_dropout.default: 2}
"""Operators that behave differently in training, with the place of the argument that says so."""
SMALLEST_REPORTED = 256
"""Values of a tensor that is worth a word when it is left as it is."""
RECURRENT = ("aten.gru.input", "aten.lstm.input", "aten.rnn_relu.input", "aten.rnn_tanh.input")
HALF_DTYPES = (torch.float16, torch.bfloat16)


def load_torch_export(path: Path) -> Model:
    """Load a program that torch.export.save wrote; the program runs in float32 whatever it was exported in.

    Of several outputs all count together, but for a language model's, and a classifier's if no weight is behind the
    others alone.

    Raises:
        ModelError: the file is damaged, would have to be unpickled, was exported in training mode, takes inputs that
            are no tensors, or does not run.
    """
    check_archive(path)
    model, several = _loaded(path, joined=False)
    if not several or model.objective is Objective.LANGUAGE_MODEL:
        return model
    joint, _ = _loaded(path, joined=True)
    more = len(joint.graph.sites) > len(model.graph.sites)
    whole = model.objective is Objective.VALUES and model.vocabulary_size is None  # text has masks, which one heeds
    return joint if more or whole else model


def _loaded(path: Path, *, joined: bool) -> tuple[Model, bool]:
    """The model by its first output or by all that count, and whether these are several."""
    module, inputs, bounds, dropped, places = _flat_module(path, joined=joined)
    _to_float32(module)
    _unite_tied(module)
    compute_normed_weights(module)
    weighted = replace_operators(module)
    module.requires_grad_(False)
    batch = trial_batch(inputs)
    graph, notices = lift(module, weighted, batch)
    with torch.no_grad():
        output: Tensor = module(**batch)
    table = _token_table(module, weighted, graph, inputs)
    objective = Objective.JOINT_VALUES if joined else _objective(output, graph, table, inputs)
    together = tuple(output_names(places[-1] + 1)[place] for place in places) if joined else ()
    model = Model(
        name=path.stem,
        path=path,
        source="torch_export",
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        graph=graph if objective.predicts else replace(graph, head=None),
        program=TorchProgram(module=module),
        objective=objective,
        inputs=inputs,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        vocabulary_size=table,
        context_length=bounds.get(inputs[0].name) if table is not None else None,
        notices=(*dropped, *notices, *_left_alone(module, graph)),
        output=OutputSpec(name=together[0], together=together) if together else None,
    )
    return model, len(places) > 1


def _flat_module(
    path: Path, *, joined: bool
) -> tuple[fx.GraphModule, tuple[InputSpec, ...], Mapping[str, int], tuple[str, ...], tuple[int, ...]]:
    """The program as a module that takes its tensors by name and returns its first floating-point output, or several.

    Returns:
        The module, its inputs, the upper bound of each input's second axis where it is free but bounded, notices, and
        the places of the outputs that can count together.
    """
    try:
        program = torch.export.load(path)
        for node in program.graph.nodes:
            _check_node(path, node)
        if any(_writes_in_place(node) for node in program.graph.nodes):
            program = program.run_decompositions({})  # which makes all operators functional, and takes none apart
        module: Any = program.module(check_guards=False)
    except ModelError:
        raise
    except Exception as error:  # torch raises whatever its deserializer runs into
        raise ModelError(
            f"{path}: torch {torch.__version__} cannot read it. {type(error).__name__}: {error}"
        ) from error
    inputs: list[InputSpec] = []
    bounds: dict[str, int] = {}
    graph: fx.Graph = module.graph
    graph.set_codegen(CodeGen())
    for hooks in (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs):
        hooks.clear()  # they check that arguments come positionally, as they did at the export
    for node in graph.nodes:
        _check_node(path, node)
        if node.op == "placeholder":
            value = node.meta.get("val")
            if isinstance(value, Tensor):
                inputs.append(_input_spec(node.name, value))
                bounds |= _bound(node.name, value, program.range_constraints)
                node.target = node.name
            else:
                node.args = (value,)  # a constant of the export: never passed again
    places = counted_outputs(graph)
    dropped = join_outputs(graph, places) if joined else keep_first_output(path, graph)
    if not inputs:
        raise ModelError(f"{path}: the program takes no tensor.")
    module.recompile()
    return module, tuple(inputs), bounds, dropped, places


def _check_node(path: Path, node: fx.Node) -> None:
    if node.op == "call_function" and not (
        isinstance(node.target, (OpOverload, HigherOrderOperator)) or getattr(node.target, "__module__", "") in _PLAIN
    ):
        raise ModelError(f"{path}: {node.name} calls {node.target}, which is no operator of torch. It is not run.")
    place = TRAINING_FLAG.get(node.target) if node.op == "call_function" else None  # pyright: ignore[reportArgumentType, reportCallIssue]
    if place is not None and len(node.args) > place and node.args[place] is True:
        raise ModelError(f"{path}: {node.name} was exported in training mode. Call model.eval() and export again.")


def _writes_in_place(node: fx.Node) -> bool:
    """Whether an operator overwrites what another read or wrote: what is observed of a layer must stay as it was."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable  # pyright: ignore[reportPrivateUsage]


_PLAIN = (operator.__name__, "_operator", "math", "torch", "torch.sym_op", "builtins")


def _input_spec(name: str, value: Tensor) -> InputSpec:
    shape: tuple[Any, ...] = tuple(value.shape)  # whole numbers, or symbols where any size goes
    sizes = [size if isinstance(size, int) else None for size in shape]
    dtype = torch.float32 if value.dtype in HALF_DTYPES else value.dtype
    return InputSpec(name=name, dtype=dtype, shape=tuple(sizes))


def _bound(name: str, value: Tensor, ranges: Mapping[Any, Any]) -> dict[str, int]:
    length: Any = value.shape[1] if value.dim() > 1 else 0
    if isinstance(length, int):
        return {}
    known = ranges.get(length.node.expr)
    upper = getattr(known, "upper", LONGEST_CONTEXT)
    return {name: int(upper)} if upper < LONGEST_CONTEXT else {}


def _to_float32(module: fx.GraphModule) -> None:
    """Weights and the casts inside the program to float32."""
    module.float()
    for part in module.modules():
        if not isinstance(part, fx.GraphModule):
            continue
        for node in list(part.graph.nodes):
            if node.target in ("_guards_fn", ATEN._assert_tensor_metadata.default):  # checks of the export's own dtypes
                part.graph.erase_node(node)
            else:
                node.args = fx.node.map_aggregate(node.args, _widened)  # pyright: ignore[reportAttributeAccessIssue]
                node.kwargs = fx.node.map_aggregate(node.kwargs, _widened)  # pyright: ignore[reportAttributeAccessIssue]
        part.recompile()


def _widened(argument: Any) -> Any:
    return torch.float32 if argument in HALF_DTYPES and isinstance(argument, torch.dtype) else argument


def _unite_tied(module: nn.Module) -> None:
    """Make parameters that share their memory one object, so that tied weights are known to be tied."""
    first: dict[tuple[Any, ...], nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            place = (parameter.data_ptr(), tuple(parameter.shape), parameter.stride())
            setattr(part, name, first.setdefault(place, parameter) if parameter.numel() else parameter)


def _token_table(
    module: nn.Module, weighted: Mapping[str, WeightedModule], graph: Graph, inputs: tuple[InputSpec, ...]
) -> int | None:
    """Rows of the table that the first input indexes, `None` if that input is no token ids."""
    if inputs[0].dtype not in (torch.int64, torch.int32) or len(inputs[0].shape) != 2:
        return None
    for site in graph.sites:
        if any(weighted[use.operator].kind is UseKind.EMBEDDING for use in site.uses):
            return site.rows
    return None


def _left_alone(module: fx.GraphModule, graph: Graph) -> Iterator[str]:
    """The matrices that are no sites, by the operators that read them."""
    sites = {id(module.get_parameter(site.name)) for site in graph.sites}
    left: defaultdict[str, dict[int, Tensor]] = defaultdict(dict)
    for node in module.graph.nodes:
        value = _value(module, node.target) if node.op == "get_attr" else None
        if value is None or id(value) in sites or value.dim() < 2 or value.numel() < SMALLEST_REPORTED:
            continue
        operators = ", ".join(sorted({str(user.target) for user in node.users}))
        left[operators][id(value)] = value
    for operators, values in left.items():
        count = f"tensors of {sum(value.numel() for value in values.values()):,} values ({len(values)})"
        hint = " In an ONNX file these weights can be quantized." if operators in RECURRENT else ""
        yield f"{count} that {operators} reads are no weights that can be quantized: left as they are.{hint}"


def _value(module: nn.Module, path: Any) -> Tensor | None:
    """The floating point tensor of this name."""
    value = held_at(module, str(path))
    return value if isinstance(value, Tensor) and value.is_floating_point() else None


def _objective(output: Tensor, graph: Graph, table: int | None, inputs: tuple[InputSpec, ...]) -> Objective:
    if table is not None and output.dim() == 3 and output.shape[-1] == table:
        return Objective.LANGUAGE_MODEL
    if output.dim() == 2 and output.shape[1] > 1 and graph.head is not None:
        return Objective.CLASSIFIER
    return Objective.VALUES
