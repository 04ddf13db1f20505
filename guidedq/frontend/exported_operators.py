"""Turn the calls of an exported program that apply a weight into submodules that take the activation first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from guidedq.ir.graph import Storage, UseKind
from guidedq.ir.lifting import WeightedModule
from guidedq.ir.tracing import held_at

ATEN = torch.ops.aten
OPERATORS = "operators"
"""The submodule under which the new ones are gathered: parameters keep their own names beside it."""
CONVOLUTIONS = (
    *(ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv3d.default),
    *(ATEN.conv1d.padding, ATEN.conv2d.padding, ATEN.conv3d.padding),
)
TRANSPOSED_CONVOLUTIONS = (ATEN.conv_transpose1d.default, ATEN.conv_transpose2d.input, ATEN.conv_transpose3d.input)
PASSED_THROUGH = (ATEN.alias.default, ATEN.detach.default, ATEN.to.dtype, ATEN._to_copy.default)
"""Between a weight and its use these change nothing once the program is in float32."""
FLATTENING = (ATEN.view.default, ATEN.reshape.default, ATEN._unsafe_view.default)
GROUPS_ARGUMENT = 6
"""Place of `groups` among the arguments of aten.conv1d, conv_transpose1d and the like; of aten.convolution it is 8."""


@final
class Linear(nn.Module):
    """`x @ W^T + b`, or `x @ W + b` for a weight stored `[in, out]`."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, storage: Storage) -> None:
        super().__init__()
        self.weight, self.bias, self.storage = weight, bias, storage

    def forward(self, activation: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        weight = self.weight if self.storage is Storage.OUT_IN else self.weight.t()
        return functional.linear(activation, weight, self.bias)


@final
class Embedding(nn.Module):
    """Rows of a table."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, tokens: Tensor) -> Tensor:
        """`[...]` to `[..., in]`."""
        return functional.embedding(tokens, self.weight)


@final
class Convolution(nn.Module):
    """A convolution, transposed or not, by the program's own operator and geometry."""

    def __init__(
        self, operator: Any, weight: nn.Parameter, bias: nn.Parameter | None, geometry: tuple[Any, ...]
    ) -> None:
        super().__init__()
        self.operator, self.weight, self.bias, self.geometry = operator, weight, bias, geometry

    def forward(self, activation: Tensor) -> Tensor:
        """`[sample, channel, ...]` to `[sample, out, ...]`."""
        return self.operator(activation, self.weight, self.bias, *self.geometry)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A call that applies a weight: the module to put in its place, the activation it reads, and its facts."""

    module: Linear | Embedding | Convolution
    activation: fx.Node
    facts: WeightedModule


def replace_operators(module: fx.GraphModule) -> Mapping[str, WeightedModule]:
    """Put a submodule in the place of every linear, convolution and embedding call whose weight is a parameter.

    The program's graph is changed in place: it is the frontend's own.

    Returns:
        The new submodules by name, with what they do.
    """
    weighted: dict[str, WeightedModule] = {}
    first_names = {id(parameter): name for name, parameter in module.named_parameters()}
    module.add_module(OPERATORS, nn.Module())
    for node in list(module.graph.nodes):
        found = _recognized(module, node)
        if found is None:
            continue
        name = _free_name(first_names[id(found.module.weight)], weighted)
        module.add_submodule(name, found.module)
        with module.graph.inserting_before(node):
            called = _called(module.graph, name, found, node)
        node.replace_all_uses_with(called)
        module.graph.erase_node(node)
        weighted[name] = found.facts
    module.graph.eliminate_dead_code()
    module.recompile()
    return weighted


def _recognized(module: fx.GraphModule, node: Any) -> _Found | None:
    readers: Mapping[Any, Callable[[fx.GraphModule, Any], _Found | None]] = {
        ATEN.linear.default: _linear,
        ATEN.addmm.default: _addmm,
        ATEN.mm.default: _product,
        ATEN.bmm.default: _product,
        ATEN.matmul.default: _product,
        ATEN.embedding.default: _embedding,
        ATEN.convolution.default: _convolution,
        **dict.fromkeys((*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS), _convolution),
    }
    reader = readers.get(node.target) if node.op == "call_function" else None
    return reader(module, node) if reader else None


def _linear(module: fx.GraphModule, node: Any) -> _Found | None:
    weight, storage = _weight(node.args[1])
    bias = node.args[2] if len(node.args) > 2 else None
    return _as_linear(module, node.args[0], weight, bias, storage)


def _addmm(module: fx.GraphModule, node: Any) -> _Found | None:
    if node.kwargs:  # alpha or beta
        return None
    weight, storage = _weight(node.args[2])
    return _as_linear(module, node.args[1], weight, node.args[0], _transposed(storage))


def _product(module: fx.GraphModule, node: Any) -> _Found | None:
    weight, storage = _weight(node.args[1])
    return _as_linear(module, node.args[0], weight, None, _transposed(storage))


def _as_linear(
    module: fx.GraphModule, activation: Any, weight: str | None, bias: Any, storage: Storage
) -> _Found | None:
    parameter = _parameter(module, weight)
    offset, known = _bias(module, bias)
    if parameter is None or parameter.dim() != 2 or not known or not isinstance(activation, fx.Node):
        return None
    facts = WeightedModule(parameter=weight or "", kind=UseKind.LINEAR, storage=storage)
    return _Found(module=Linear(parameter, offset, storage), activation=activation, facts=facts)


def _embedding(module: fx.GraphModule, node: Any) -> _Found | None:
    weight, storage = _weight(node.args[0])
    parameter, tokens = _parameter(module, weight), node.args[1]
    if parameter is None or storage is not Storage.OUT_IN or not isinstance(tokens, fx.Node):
        return None
    facts = WeightedModule(parameter=weight or "", kind=UseKind.EMBEDDING)
    return _Found(module=Embedding(parameter), activation=tokens, facts=facts)


def _convolution(module: fx.GraphModule, node: Any) -> _Found | None:
    weight, storage = _weight(node.args[1])
    parameter, activation = _parameter(module, weight), node.args[0]
    bias, known = _bias(module, node.args[2] if len(node.args) > 2 else None)
    general = node.target is ATEN.convolution.default
    if parameter is None or storage is not Storage.OUT_IN or not known or not isinstance(activation, fx.Node):
        return None
    transposed = node.target in TRANSPOSED_CONVOLUTIONS or bool(general and node.args[6])
    place = GROUPS_ARGUMENT + 2 if general else GROUPS_ARGUMENT
    groups: Any = node.args[place] if len(node.args) > place else 1
    stored = Storage.IN_OUT_KERNEL if transposed else Storage.OUT_IN
    facts = WeightedModule(parameter=weight or "", kind=UseKind.CONVOLUTION, storage=stored, input_groups=int(groups))
    convolution = Convolution(node.target, parameter, bias, tuple(node.args[3:]))
    return _Found(module=convolution, activation=activation, facts=facts)


def _called(graph: fx.Graph, name: str, found: _Found, node: fx.Node) -> fx.Node:
    """The call of the new module, on the activation as it was before it was flattened to a matrix.

    The first axis of what a module reads must be the sample; decomposed programs flatten it away around `mm`.
    """
    activation = found.activation
    whole = activation.args[0] if activation.op == "call_function" and activation.target in FLATTENING else None
    flat, full = _shape(activation), _shape(whole)
    flattened = len(flat) == 2 < len(full) and str(flat[-1]) == str(full[-1])
    if flattened and isinstance(found.module, Linear) and isinstance(whole, fx.Node):
        product = graph.call_module(name, (whole,))
        return graph.call_function(ATEN.flatten.using_ints, (product, 0, -2))
    called = graph.call_module(name, (activation,))
    called.meta = dict(node.meta)
    return called


def _shape(node: Any) -> tuple[Any, ...]:
    values = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(values.shape) if isinstance(values, Tensor) else ()


def _weight(node: Any) -> tuple[str | None, Storage]:
    """The path of the parameter behind a node, and how it is stored if the node is read as `[out, in]`."""
    storage = Storage.OUT_IN
    while isinstance(node, fx.Node) and node.op == "call_function":
        if node.target in PASSED_THROUGH or _repeats_matrix(node):
            node = node.args[0]
        elif _is_transpose(node):
            node, storage = node.args[0], _transposed(storage)
        else:
            return None, storage
    return (str(node.target), storage) if isinstance(node, fx.Node) and node.op == "get_attr" else (None, storage)


def _is_transpose(node: Any) -> bool:
    if node.target is ATEN.t.default:
        return True
    if node.target is ATEN.transpose.int:
        return {int(axis) % 2 for axis in node.args[1:3]} == {0, 1} and len(_shape(node)) == 2
    return node.target is ATEN.permute.default and list(node.args[1]) == [1, 0]


def _repeats_matrix(node: fx.Node) -> bool:
    """Whether a node only repeats one matrix along a new first axis, as decomposed products do before `bmm`."""
    shape, source = _shape(node), _shape(node.args[0])
    repeats = node.target in (ATEN.expand.default, *FLATTENING) and len(shape) == 3 and len(source) in (2, 3)
    return repeats and [str(size) for size in shape[-2:]] == [str(size) for size in source[-2:]]


def _transposed(storage: Storage) -> Storage:
    return Storage.OUT_IN if storage is Storage.IN_OUT else Storage.IN_OUT


def _parameter(module: fx.GraphModule, path: str | None) -> nn.Parameter | None:
    if path is None:
        return None
    value = held_at(module, path)
    return value if isinstance(value, nn.Parameter) and value.is_floating_point() else None


def _bias(module: fx.GraphModule, node: Any) -> tuple[nn.Parameter | None, bool]:
    """The bias behind an argument, and whether it is one (or none at all)."""
    if node is None:
        return None, True
    path, storage = _weight(node)
    parameter = _parameter(module, path)
    return parameter, parameter is not None and parameter.dim() == 1 and storage is Storage.OUT_IN


def _free_name(parameter: str, taken: Mapping[str, WeightedModule]) -> str:
    """`operators.model_layers_0_mlp_up_proj`, with a number from the second use on."""
    stem = f"{OPERATORS}.{parameter.removesuffix('.weight').replace('.', '_')}"
    count = sum(name == stem or name.rpartition("__")[0] == stem for name in taken)
    return stem if count == 0 else f"{stem}__{count + 1}"
