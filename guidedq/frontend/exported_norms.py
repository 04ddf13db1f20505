"""Weights that an exported program computes from a direction and a length (weight_norm): computed once."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from guidedq.ir.tracing import held_at

ATEN = torch.ops.aten
DIRECTIONS = {".parametrizations.weight.original1": ".weight", "weight_v": "weight"}
"""How torch's two weight_norms end the direction's name, and what the weight is called in place of it."""


def compute_normed_weights(module: fx.GraphModule) -> None:
    """Put the weight itself in the place of every weight_norm; the two parameters go, where nothing else reads them.

    The program's graph is changed in place: it is the frontend's own.
    """
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not ATEN._weight_norm.default:
            continue
        sources = [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]
        if len(sources) < 2 or any(source.op != "get_attr" for source in sources):
            continue
        names = [str(source.target) for source in sources]
        direction, length = (held_at(module, name) for name in names)
        with torch.no_grad():
            weight: Tensor = ATEN._weight_norm.default(direction, length, *node.args[2:])
        name = _weight_name(module, names[0])
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner).register_parameter(leaf, nn.Parameter(weight))
        with module.graph.inserting_before(node):
            held = module.graph.get_attr(name)
        held.meta = dict(node.meta)
        node.replace_all_uses_with(held)
        module.graph.erase_node(node)
        for source, path in zip(sources, names, strict=True):
            if not source.users:
                module.graph.erase_node(source)
            if all(str(other.target) != path for other in module.graph.nodes if other.op == "get_attr"):
                _forget(module, path)


def _weight_name(module: nn.Module, direction: str) -> str:
    for ending, plain in DIRECTIONS.items():
        name = direction.removesuffix(ending) + plain
        if direction.endswith(ending) and held_at(module, name) is None:
            return name
    return f"{direction}_normed"


def _forget(module: nn.Module, path: str) -> None:
    owner, _, leaf = path.rpartition(".")
    delattr(module.get_submodule(owner), leaf)
