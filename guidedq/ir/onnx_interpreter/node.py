"""One operator call of an ONNX graph, free of protobuf: names, attributes as Python values, bodies of branches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from torch import Tensor

Value: TypeAlias = Tensor | list[Tensor] | None
"""What a name of the graph holds while it runs: a tensor, a sequence of tensors, or nothing (an optional input)."""

UNREADABLE = object()
"""The value of an attribute of a kind that the interpreter cannot read."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An operator call.

    Attributes:
        name: Unique in its graph, and fit to name a submodule (no dots).
        title: The name that the file gives it, for messages.
        domain: The operator's domain, empty for ONNX's own.
        operator: The operator's type.
        opset: Version of the domain's operator set.
        inputs: Names of the values it reads, empty where an optional input is left out.
        outputs: Names of the values it makes, empty where one is not wanted.
        attributes: By name: int, float, str, a tuple of these, a tensor, a `Body`, or `UNREADABLE`.
    """

    name: str
    title: str
    domain: str
    operator: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @property
    def reads(self) -> tuple[str, ...]:
        """Every outer value that it needs: its inputs and what its branches capture."""
        captured = [name for value in self.attributes.values() if isinstance(value, Body) for name in value.captures]
        return tuple(name for name in (*self.inputs, *captured) if name)

    @property
    def branches(self) -> tuple[Body, ...]:
        """The graphs of an If, of which one runs, once; other inner graphs may run many times."""
        if self.operator != "If" or self.domain:
            return ()
        return tuple(value for value in self.attributes.values() if isinstance(value, Body))

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        """A floating point attribute."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """A text attribute."""
        return str(self.attributes.get(name, default))

    def integers(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """An attribute that lists integers."""
        return tuple(int(value) for value in self.attributes.get(name, default))

    def maybe_integers(self, name: str) -> tuple[int, ...] | None:
        """An attribute that lists integers, `None` if it is absent."""
        return self.integers(name, ()) if name in self.attributes else None

    def describe(self) -> str:
        """What and where, for messages."""
        return f"{self.domain}{'.' if self.domain else ''}{self.operator} (node {self.title!r}, opset {self.opset})"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The graph inside a node: the branch of an If, the body of a Loop.

    Attributes:
        inputs: Names that the node gives values to.
        outputs: Names of its results.
        nodes: In execution order.
        constants: Its own constant tensors.
        captures: Outer values that it reads.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]
    captures: tuple[str, ...]


def with_branches(nodes: Sequence[Node]) -> Iterator[Node]:
    """The nodes, each If followed by those of its branches."""
    for node in nodes:
        yield node
        for branch in node.branches:
            yield from with_branches(branch.nodes)
