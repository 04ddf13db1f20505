"""Mixtures of experts of transformers, whose weights are 3-D, as one linear layer for each expert and projection."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")
"""What transformers calls the weights of all experts, `[expert, out, in]`, or `[expert, in, out]` if transposed."""


class SplitExperts(nn.Module):
    """Experts of a mixture, each projection of each of them a linear layer of its own: `down_proj.3` is expert 3's.

    It computes what the forward of the model's own class does, which is a base class of the object's, too. Names and
    meanings of its attributes are those that transformers gives every such class (`use_experts_implementation`).

    Attributes:
        samples: Of the batch to come, while these are to be told apart: every expert then runs, and reads
            `[sample, token, in]`, where tokens of other experts are zeros at the end. `None`: experts that no token is
            sent to do not run.
    """

    samples: int | None
    num_experts: int
    has_gate: bool
    has_post_expert_norm: bool
    gate_up_proj: nn.ModuleList
    up_proj: nn.ModuleList
    down_proj: nn.ModuleList
    act_fn: Any
    post_expert_norm: Any
    _apply_gate: Any

    def forward(
        self,
        hidden_states: Float[Tensor, "token in"],
        top_k_index: Int64[Tensor, "token k"],
        top_k_weights: Float[Tensor, "token k"],
    ) -> Float[Tensor, "token in"]:
        """The sum of what the experts of each token make of it, each times its weight."""
        outputs = torch.zeros_like(hidden_states)
        compiled = torch.compiler.is_compiling()
        everyone = compiled or self.samples is not None
        for number in range(self.num_experts) if everyone else top_k_index.unique().tolist():
            if number >= self.num_experts:  # of another process
                continue
            sent = top_k_index == number
            shares = (top_k_weights * sent).sum(-1, keepdim=True).to(hidden_states.dtype)
            if compiled:  # shapes must not depend on values
                outputs = outputs + shares * self._expert(number, hidden_states)
                continue
            tokens, real = _by_samples(sent.any(-1), self.samples or 1)
            own = hidden_states[tokens] * real[..., None]
            made = self._expert(number, own)
            weighted = (shares[tokens] * real[..., None]).flatten(0, 1) * made.flatten(0, -2)
            outputs = outputs.index_add(0, tokens.flatten(), weighted)
        return outputs

    def _expert(self, number: int, inputs: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch in"]:
        if self.has_gate:
            inner = self._apply_gate(self.gate_up_proj[number](inputs))
        else:
            inner = self.act_fn(self.up_proj[number](inputs))
        made = self.down_proj[number](inner)
        return self.post_expert_norm(made) if self.has_post_expert_norm else made


def split_experts(model: nn.Module) -> None:
    """Give every mixture of experts a linear layer for each expert, in place of weights for all of them.

    `SplitExperts` is put before the model's own class. Weights are shared with the tensors that were there, but for
    transposed ones, which are copied.
    """
    for part in list(model.modules()):
        if not _is_mixture(part):
            continue
        for name in _held(part):
            _split(part, name)
        part.__dict__["samples"] = None
        classes: tuple[Any, ...] = (SplitExperts, type(part))
        part.__class__ = type(classes[1].__name__, classes, {})
        part.__dict__["_is_hf_initialized"] = True  # its class would look for the weights that were there


def is_routed(model: nn.Module, name: str) -> bool:
    """Whether a submodule belongs to an expert: the model itself chooses what it reads."""
    owner, _, _ = name.rpartition(".")
    above, _, _ = owner.rpartition(".")
    return bool(owner) and isinstance(model.get_submodule(above), SplitExperts)


def _is_mixture(part: nn.Module) -> bool:
    """Whether it follows transformers' conventions for experts, and its weights have not been split."""
    said = all(hasattr(part, name) for name in ("num_experts", "has_gate", "has_bias", "is_transposed"))
    return said and [weight.dim() for weight in _held(part).values()] == [3, 3]


def _held(part: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in part.named_parameters(recurse=False) if name in PROJECTIONS}


def _split(part: Any, name: str) -> None:
    """Replace one 3-D weight, and its biases if there are any."""
    weights, biases = getattr(part, name), getattr(part, f"{name}_bias", None)
    for attribute in (name, f"{name}_bias") if biases is not None else (name,):
        delattr(part, attribute)
    layers = nn.ModuleList()
    for number, weight in enumerate(weights.detach()):
        matrix = weight.t().contiguous() if part.is_transposed else weight
        with torch.device("meta"):
            layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=biases is not None)
        layer.weight = nn.Parameter(matrix, requires_grad=weights.requires_grad)
        if biases is not None:
            layer.bias = nn.Parameter(biases.detach()[number], requires_grad=biases.requires_grad)
        layers.append(layer)
    part.add_module(name, layers)


def _by_samples(
    sent: Bool[Tensor, "token"], samples: int
) -> tuple[Int64[Tensor, "sample n"], Bool[Tensor, "sample n"]]:
    """The tokens that are sent to an expert, in the order of their samples; behind them others, which are not real."""
    by_sample = sent.view(samples if len(sent) % samples == 0 else 1, -1)
    most = max(1, int(by_sample.sum(1).amax()))
    order = by_sample.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    first = torch.arange(len(by_sample), device=sent.device)[:, None] * by_sample.shape[1]
    return order + first, by_sample.gather(1, order)
