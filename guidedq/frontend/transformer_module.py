"""Transformers models as modules with one tensor out, whose parameters keep their own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from guidedq.errors import ModelError
from guidedq.frontend.experts import SplitExperts
from guidedq.ir.program import AbstractWriter

LOGITS = "logits"
"""What a transformers model calls its main output; else its first floating-point tensor is taken."""
BODY = "last_hidden_state"
"""The main output of a model without a head."""
TOGETHER = (("start_logits", "end_logits"), ("text_embeds", "image_embeds"))
"""Outputs of one kind, neither of which is the main one: they are joined along the last axis."""
LOSS = "loss"
"""In the names of outputs that are no result."""
INNER = ("hidden_state", "attention", "pooler", "past", "intermediate", "init_", "enc_", "aux")
"""In the names of outputs that tell how a result came about."""
REFUSALS = (ValueError, IndexError, RuntimeError, TypeError, KeyError, AttributeError, AssertionError)
"""What models raise on inputs that they do not take; what leaves a forward pass on purpose is of a kind of its own."""


@final
class TransformerModule(nn.Module):
    """Calls a transformers model without a cache and returns its main output.

    It shares the model's own tables of children, parameters and buffers, so `model.layers.0.mlp.up_proj` is the same
    submodule of both, and weights swapped in here are swapped there.

    Args:
        model: A transformers model.
        constants: Further arguments of every call (`use_cache=False`).
    """

    def __init__(self, model: nn.Module, constants: Mapping[str, Any]) -> None:
        super().__init__()
        share_tables(self, model)
        self.constants = dict(constants)

    def forward(self, **inputs: Tensor) -> Tensor:
        """The main output of the model on these inputs."""
        return main_output(self.outputs(**inputs))

    def outputs(self, **inputs: Tensor) -> Any:
        """All that the model returns.

        Raises:
            ModelError: it refuses these inputs.
        """
        return _run(self, inputs)


@final
class LanguageModelModule(nn.Module, AbstractWriter):
    """A decoder-only language model: logits `[sample, position, vocabulary]`; shares tables as `TransformerModule`."""

    def __init__(self, model: nn.Module, constants: Mapping[str, Any]) -> None:
        super().__init__()
        share_tables(self, model)
        self.constants = dict(constants)

    def forward(self, **inputs: Tensor) -> Tensor:
        """The logits on these inputs."""
        return main_output(_run(self, inputs))

    def write(
        self, tokens: Int64[Tensor, "sequence start"], length: int, generator: torch.Generator
    ) -> Int64[Tensor, "sequence length"]:
        """Continue `tokens` to `length` by sampling at temperature 1, with the model's own cache where it has one."""
        cache: Any = None
        for part in self.__dict__["mixtures"]:
            part.samples = None
        with torch.no_grad():
            while tokens.shape[1] < length:
                fresh = tokens if cache is None else tokens[:, -1:]
                arguments: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
                outputs = self.__dict__["whole"](input_ids=fresh, **arguments, use_cache=True, return_dict=True)
                cache = outputs.get("past_key_values")
                chances = torch.softmax(outputs["logits"][:, -1].float(), dim=-1)
                tokens = torch.cat((tokens, torch.multinomial(chances, 1, generator=generator)), dim=1)
        return tokens


def _run(wrapper: Any, inputs: Mapping[str, Tensor]) -> Any:
    """What the model whose tables a wrapper shares returns; mixtures of experts tell the samples apart meanwhile."""
    model = wrapper.__dict__["whole"]
    if torch.compiler.is_exporting():  # the exporter reads more from what goes wrong than its message
        return model(**inputs, **wrapper.constants)
    for part in wrapper.__dict__["mixtures"]:
        part.samples = len(next(iter(inputs.values())))
    try:
        return model(**inputs, **wrapper.constants)
    except REFUSALS as error:
        shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in inputs.items())
        raise ModelError(f"{type(model).__name__} does not run on {shapes}: {type(error).__name__}: {error}") from error


def share_tables(wrapper: nn.Module, model: nn.Module) -> None:
    """Let `wrapper` own what `model` owns, under the same names; `model` itself is kept out of the children."""
    for table in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        wrapper.__dict__[table] = model.__dict__[table]
    wrapper.__dict__["whole"] = model
    wrapper.__dict__["mixtures"] = [part for part in model.modules() if isinstance(part, SplitExperts)]


class Lookup(nn.Embedding):
    """A table whose plain lookup is a submodule of its own, `lookup`, so that it can be seen and named."""

    lookup: nn.Embedding

    def forward(self, input: Tensor) -> Tensor:
        """Rows of the table."""
        return self.lookup(input)


def expose_lookups(model: nn.Module) -> None:
    """Give every embedding that does more than look up (scales, shifts positions) a submodule that only looks up.

    `Lookup` is put between the model's own class and `nn.Embedding`, which its `super().forward` then finds first.
    """
    for part in list(model.modules()):
        if isinstance(part, nn.Embedding) and type(part).forward is not nn.Embedding.forward:
            lookup = nn.Embedding(part.num_embeddings, part.embedding_dim, _weight=part.weight.detach())
            lookup.weight = part.weight
            part.lookup = lookup
            classes: tuple[Any, ...] = (type(part), Lookup)
            part.__class__ = type(classes[0].__name__, classes, {})


def main_output(outputs: Any) -> Tensor:
    """The logits, else two outputs that belong together, else the first floating-point tensor that is no loss.

    Raises:
        ModelError: there is none.
    """
    named = named_outputs(outputs)
    if LOGITS in named:
        return named[LOGITS]
    for first, second in TOGETHER:
        if first in named and second in named:
            pair = [named[name] for name in (first, second)]
            return torch.stack(pair, dim=-1) if first.endswith(LOGITS) else torch.cat(pair, dim=-1)
    if named:
        return next(iter(named.values()))
    raise ModelError(f"the model returns no floating-point tensor, only {type(outputs).__name__}.")


def named_outputs(outputs: Any) -> Mapping[str, Tensor]:
    """The floating-point tensors among a model's outputs, losses left out; of a tuple by their place."""
    listed = outputs if isinstance(outputs, Mapping) else {str(place): value for place, value in enumerate(outputs)}
    tensors = {name: value for name, value in listed.items() if isinstance(value, Tensor)}
    return {name: value for name, value in tensors.items() if value.is_floating_point() and LOSS not in name}


def further_outputs(outputs: Any) -> Mapping[str, Tensor]:
    """A head's results besides the main one (boxes beside classes; each of two that are joined), by name."""
    named, main = named_outputs(outputs), main_output(outputs)
    if BODY in named and named[BODY] is main:
        return {}
    found = {name: value for name, value in named.items() if value is not main}
    return {name: value for name, value in found.items() if not any(word in name for word in INNER)}
