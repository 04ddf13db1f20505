"""Data-flow tracing: run a module once on a tiny batch and note which operator's output each tensor comes from.

Torch functions are seen through a `TorchFunctionMode`, modules through hooks. Between two operators a tensor carries
the set of operators that it derives from most nearly; an operator that reads it gets an edge from each of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import networkx as nx
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from guidedq.ir.graph import OperatorGraph, operator_graph
from guidedq.ir.program import Batch

TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Flatten)
"""Modules that change no value in evaluation mode: data pass through them, they are no operators of the graph."""

ATTENTION = "scaled_dot_product_attention"
ADDITIONS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
"""Where two branches join (residual connections); a node of its own keeps the edges few in deep networks."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one run showed.

    Attributes:
        operators: The operators that ran, with the data flow between them. A module that ran again has a further node,
            `name@2`, so that the graph has no circle.
        called: Leaf modules in the order in which data first reached them.
        readers: Groups of two or more modules whose first call read one and the same tensor.
        output: The operators that the output derives from most nearly.
        outside: The weights that are also read by functions outside their operators.
    """

    operators: OperatorGraph
    called: tuple[str, ...]
    readers: tuple[tuple[str, ...], ...]
    output: frozenset[str]
    outside: frozenset[str] = frozenset()

    @property
    def reaching(self) -> frozenset[str]:
        """The operators whose result reaches the output; all of them if the output's origin was lost."""
        if not self.output:
            return frozenset(self.operators)
        return self.output.union(*(nx.ancestors(self.operators, node) for node in self.output))


def trace(module: nn.Module, batch: Batch, weighted: Mapping[str, str]) -> Trace:
    """Run `module(**batch)` once, without gradients, and return what was seen.

    Args:
        module: In evaluation mode.
        batch: Small inputs.
        weighted: Submodules that apply a weight, with the weight's name. Each is an operator even if it has children.

    Raises:
        Exception: whatever the module itself raises.
    """
    tracer = _Tracer(weighted, {id(held_at(module, name)): name for name in weighted.values()})
    handles = [handle for name, part in module.named_modules() for handle in tracer.watch(name, part)]
    try:
        with torch.no_grad(), tracer:
            output = module(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return Trace(
        operators=operator_graph(tracer.nodes, tracer.edges),
        called=tuple(tracer.first_calls),
        readers=tuple(tuple(names) for names in tracer.readers.values() if len(names) > 1),
        output=tracer.sources_of(output),
        outside=frozenset(tracer.outside),
    )


@final
class _Tracer(TorchFunctionMode):
    """The state of one run: the origin of every tensor seen, and the graph so far."""

    def __init__(self, weighted: Mapping[str, str], weights: Mapping[int, str]) -> None:
        super().__init__()
        self.outside: set[str] = set()
        self._weights = weights
        self.nodes: list[tuple[str, dict[str, Any]]] = []
        self.edges: list[tuple[str, str]] = []
        self.first_calls: dict[str, None] = {}
        self.readers: defaultdict[tuple[Any, ...], list[str]] = defaultdict(list)
        self._weighted = weighted
        self._origins: dict[int, tuple[Tensor, frozenset[str]]] = {}  # holds the tensors, so that no id is used twice
        self._calls: defaultdict[str, int] = defaultdict(int)
        self._scopes: list[str] = [""]
        self._inside_leaf = 0

    def watch(self, name: str, module: nn.Module) -> list[Any]:
        """Hook one module: operators as nodes, the others as scopes that give functions their names."""
        if name in self._weighted or not (any(module.children()) or isinstance(module, TRANSPARENT)):
            before, after = self._enter_leaf(name), self._leave_leaf(name, type(module).__name__)
        else:
            before, after = self._enter_scope(name), self._leave_scope
        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]

    def sources_of(self, values: Any) -> frozenset[str]:
        """The operators that these tensors, however nested, derive from."""
        return frozenset[str]().union(*(self._origin(tensor) for tensor in _tensors(values)))

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one torch function, and let its results inherit the origins of its arguments."""
        result = function(*args, **(kwargs or {}))
        if self._inside_leaf:
            return result
        if any(True for _ in _tensors(result)):  # its shape or dtype alone may be asked for
            self.outside.update(
                self._weights[id(used)] for used in _tensors((args, kwargs)) if id(used) in self._weights
            )
        name = _function_name(function)
        sources = self.sources_of((args, kwargs))
        if name == ATTENTION:
            sources = self._node(f"{self._scopes[-1]}.{ATTENTION}", "ScaledDotProductAttention", sources)
        elif name in ADDITIONS and self._joins(args):
            sources = self._node(f"{self._scopes[-1]}.add", "Add", sources)
        if sources:
            self._mark(result if result is not None else args[:1], sources)
        return result

    def _joins(self, args: Sequence[Any]) -> bool:
        """Whether an addition joins two branches, each with an origin of its own."""
        origins = [self._origin(value) for value in args[:2] if isinstance(value, Tensor)]
        return len(origins) == 2 and bool(origins[0]) and bool(origins[1]) and origins[0] != origins[1]

    def _node(self, name: str, operator: str, sources: frozenset[str], site: str | None = None) -> frozenset[str]:
        name = name.lstrip(".")
        self._calls[name] += 1
        unique = name if self._calls[name] == 1 else f"{name}@{self._calls[name]}"
        attributes = {"operator": operator} if site is None else {"operator": operator, "site": site}
        self.nodes.append((unique, attributes))
        self.edges.extend((source, unique) for source in sorted(sources))
        return frozenset({unique})

    def _origin(self, tensor: Tensor) -> frozenset[str]:
        known = self._origins.get(id(tensor))
        return known[1] if known else frozenset()

    def _mark(self, values: Any, sources: frozenset[str]) -> None:
        for tensor in _tensors(values):
            self._origins[id(tensor)] = (tensor, sources)

    def _enter_leaf(self, name: str) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module, kwargs
            self._inside_leaf += 1
            if name not in self.first_calls and name in self._weighted:
                for tensor in _tensors(args[:1]):
                    self.readers[_location(tensor)].append(name)
                    self._origins.setdefault(id(tensor), (tensor, frozenset()))

        return before

    def _leave_leaf(self, name: str, operator: str) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            del module
            self._inside_leaf -= 1
            if self._inside_leaf:
                return
            self.first_calls.setdefault(name)
            self._mark(result, self._node(name, operator, self.sources_of((args, kwargs)), self._weighted.get(name)))

        return after

    def _enter_scope(self, name: str) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module, args, kwargs
            self._scopes.append(name)

        return before

    def _leave_scope(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        del module, args, kwargs, result
        self._scopes.pop()


def held_at(module: nn.Module, path: str) -> Any:
    """What a module holds under a dotted path, a parameter or buffer as a rule; `None` if it holds nothing there."""
    owner, _, leaf = path.rpartition(".")
    return getattr(module.get_submodule(owner), leaf, None)


def _function_name(function: Any) -> str:
    """`add` for `torch.add`, `Tensor.add` and `torch.ops.aten.add.Tensor` alike."""
    packet = getattr(function, "overloadpacket", function)
    return str(getattr(packet, "__name__", ""))


def _location(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensor objects share when they are views of the same values (reshapes included)."""
    storage = tensor.untyped_storage().data_ptr()
    return storage, tensor.storage_offset(), tensor.numel(), tensor.shape[-1:], tensor._version


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
