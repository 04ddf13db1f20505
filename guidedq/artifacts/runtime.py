"""What a runtime makes of a model: which operator runs each site, and how that operator gets the weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

WeightState = Literal["codes", "folded", "stored", "each call"]
"""`codes`: the operator reads codes; `folded`: dequantized once, at load; `stored`: the file holds the very values;
`each call`: dequantized at every call, which is slow."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeNode:
    """One operator that reads a site, as it is run.

    Attributes:
        operator: Its type in the graph that the runtime runs.
        weight: How it gets the weight.
        bits: Of a code in memory; `None` where memory holds floats.
        block_size: Codes that share a scale, if the operator says it.
        accuracy_level: Of a MatMulNBits: 4 rounds activations to int8.
    """

    operator: str
    weight: WeightState
    bits: int | None = None
    block_size: int | None = None
    accuracy_level: int | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeFacts:
    """What a runtime makes of a model, read back from the graph that it runs.

    Attributes:
        name: The runtime and its version.
        sites: The operators that read each site.
        unpacking_nodes: Nodes of the file, functions unrolled, that depend on stored weights alone.
        unfolded_nodes: Those that are left after loading, and run at every call.
    """

    name: str
    sites: Mapping[str, tuple[RuntimeNode, ...]]
    unpacking_nodes: int
    unfolded_nodes: int

    @property
    def kinds(self) -> Mapping[RuntimeNode, int]:
        """How many operators of each kind there are, the most frequent first."""
        return dict(Counter(node for nodes in self.sites.values() for node in nodes).most_common())

    @staticmethod
    def of(content: Mapping[str, Any]) -> RuntimeFacts:
        """The facts from plain values, as JSON has them."""
        facts = dict(content)
        sites = {name: tuple(RuntimeNode(**node) for node in nodes) for name, nodes in facts.pop("sites").items()}
        return RuntimeFacts(sites=sites, **facts)
