"""From a torch module whose weights are read by submodules to the graph of its operators and sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn

from guidedq.errors import ModelError
from guidedq.ir.graph import Graph, Site, Storage, Use, UseKind, operator_graph
from guidedq.ir.model import InputSpec
from guidedq.ir.program import Batch
from guidedq.ir.tracing import Trace, held_at, trace

TRIAL_SAMPLES = 2
"""Samples of a trial run: exported programs often refuse a batch of one."""
TRIAL_SIZES = {4: (3, 64, 64)}
"""Sizes of a trial run's free axes after the first, by rank: channels, height and width; 8 where none is given."""
TRIAL_WAVE = 1600
"""Samples of sound in a trial run: a tenth of a second, four frames of what wav2vec 2.0 makes of it."""
WAVE = "input_values"
"""What transformers calls sound that is given as it is."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedModule:
    """How one submodule applies its weight.

    Attributes:
        parameter: Path of the weight from the module's root, `model.layers.0.mlp.up_proj.weight`.
        kind: What it does with the weight.
        storage: How the weight is stored.
        input_groups: Groups of a convolution.
        routed: The model chooses what it reads.
    """

    parameter: str
    kind: UseKind
    storage: Storage = Storage.OUT_IN
    input_groups: int = 1
    routed: bool = False


def lift(module: nn.Module, weighted: Mapping[str, WeightedModule], batch: Batch) -> tuple[Graph, tuple[str, ...]]:
    """Run the module once on a small batch and read off its graph.

    A weight becomes a site if an operator that applies it reaches the output. Tied weights are one site, named after
    the first of their names.

    Args:
        module: Returns one tensor from `module(**batch)`.
        weighted: The submodules that apply a weight, by name.
        batch: Inputs for the trial run.

    Returns:
        The graph, and notices for the user.

    Raises:
        ModelError: the module does not run on `batch`.
    """
    names = _canonical_names(module)
    sites = {name: names.get(id(held_at(module, part.parameter)), part.parameter) for name, part in weighted.items()}
    seen, notices = _observed(module, batch, sites)
    reaching = seen.reaching
    idle = [sites[name] for name in seen.called if name in sites and name not in reaching]
    if idle:
        notices += (f"the output does not depend on {_listed(idle)}: left as they are.",)
    called = {sites[name] for name in seen.called if name in sites}
    unread = list(dict.fromkeys(site for site in sites.values() if site not in called))
    if unread:
        notices += (f"on {', '.join(batch)} the layers of {_listed(unread)} are not called: left as they are.",)
    if outside := sorted(seen.outside & called):
        notices += (f"not only layers read {_listed(outside)}: left as they are.",)
    operators = [name for name in seen.called if name in reaching and sites.get(name, "") not in ("", *seen.outside)]
    graph = Graph(
        operators=seen.operators,
        sites=_sites(module, weighted, sites, operators),
        shared_inputs=_shared_inputs(seen, weighted, sites, frozenset(operators)),
        head=_head(seen, weighted, sites),
    )
    return graph, notices


def trial_batch(inputs: Sequence[InputSpec]) -> Batch:
    """Small inputs of the right names, dtypes and shapes: token ids 0 and 1, masks of ones, seeded noise."""
    generator = torch.Generator().manual_seed(0)
    return {spec.name: _trial_values(spec, generator) for spec in inputs}


def _trial_values(spec: InputSpec, generator: torch.Generator) -> Tensor:
    sizes = (TRIAL_WAVE,) if spec.name == WAVE else (8,)
    free = (TRIAL_SAMPLES, *TRIAL_SIZES.get(len(spec.shape), sizes * (len(spec.shape) - 1)))
    shape = [size if fixed is None else fixed for fixed, size in zip(spec.shape, free, strict=False)]
    if "mask" in spec.name or spec.dtype is torch.bool:
        return torch.ones(shape, dtype=spec.dtype)
    if not spec.dtype.is_floating_point:
        tokens = torch.arange(shape[-1] if shape else 1).remainder(2)
        if spec.last is not None:
            tokens[-1] = spec.last
        return tokens.expand(shape).to(spec.dtype).contiguous()
    return torch.randn(shape, generator=generator).to(spec.dtype)


def _observed(module: nn.Module, batch: Batch, sites: Mapping[str, str]) -> tuple[Trace, tuple[str, ...]]:
    """The trace; if tracing itself fails on a module that runs, a chain of its operators in their own order."""
    try:
        return trace(module, batch, sites), ()
    except Exception as failure:  # the module's own code runs here: anything can be raised
        try:
            with torch.no_grad():
                module(**batch)
        except Exception as error:
            if isinstance(error, ModelError):
                raise ModelError(f"{error} A model with other inputs can be given as an ONNX file.") from error
            shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in batch.items())
            reason = f"{type(error).__name__}: {error}"
            raise ModelError(
                f"the model does not run on {shapes}: {reason} A model with other inputs can be given as an ONNX file."
            ) from error
        notice = f"the data flow could not be traced ({type(failure).__name__}); operators are taken as a chain."
    names = list(sites)
    nodes = [(name, {"operator": type(module.get_submodule(name)).__name__, "site": sites[name]}) for name in names]
    edges = list(pairwise(names))
    chain = operator_graph(nodes, edges)
    return Trace(operators=chain, called=tuple(names), readers=(), output=frozenset()), (notice,)


def _canonical_names(module: nn.Module) -> dict[int, str]:
    """The first name of every parameter and buffer, by identity: the one name of tied weights."""
    names: dict[int, str] = {}
    for name, values in (*module.named_parameters(), *module.named_buffers()):
        names.setdefault(id(values), name)
    return names


def _sites(
    module: nn.Module, weighted: Mapping[str, WeightedModule], sites: Mapping[str, str], operators: Sequence[str]
) -> tuple[Site, ...]:
    """One site per weight, in the order of its first use."""
    uses: dict[str, list[str]] = {}
    for operator in operators:
        uses.setdefault(sites[operator], []).append(operator)
    return tuple(
        Site(
            name=name,
            shape=tuple(held_at(module, name).shape),
            uses=tuple(_use(operator, weighted[operator]) for operator in users),
            storage=_one_storage(name, [weighted[operator] for operator in users]),
            input_groups=max(weighted[operator].input_groups for operator in users),
        )
        for name, users in uses.items()
    )


def _use(operator: str, weighted: WeightedModule) -> Use:
    return Use(operator=operator, kind=weighted.kind, routed=weighted.routed)


def _one_storage(name: str, users: Sequence[WeightedModule]) -> Storage:
    storages = {user.storage for user in users}
    if len(storages) > 1:
        raise ModelError(f"{name} is read by one operator as [out, in] and by another as [in, out].")
    return storages.pop()


def _shared_inputs(
    seen: Trace, weighted: Mapping[str, WeightedModule], sites: Mapping[str, str], operators: frozenset[str]
) -> tuple[tuple[str, ...], ...]:
    """Groups of linear sites that read one tensor; a site is in one group only."""
    groups: list[tuple[str, ...]] = []
    taken: set[str] = set()
    for readers in seen.readers:
        linear = [name for name in readers if name in operators and weighted[name].kind is UseKind.LINEAR]
        group = tuple(dict.fromkeys(sites[name] for name in linear if sites[name] not in taken))
        if len(group) > 1:
            groups.append(group)
            taken.update(group)
    return tuple(groups)


def _head(seen: Trace, weighted: Mapping[str, WeightedModule], sites: Mapping[str, str]) -> str | None:
    """The site whose linear operator alone gives the output."""
    names = [node for node in seen.output if node in weighted and weighted[node].kind is UseKind.LINEAR]
    return sites[names[0]] if len(seen.output) == 1 and names else None


def _listed(names: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
