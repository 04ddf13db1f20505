"""Attention and rotary positions as single operators (opset 23 and later)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from guidedq.ir.onnx_interpreter.node import Node

AFTER_SOFTCAP, AFTER_BIAS, AFTER_SOFTMAX = 1, 2, 3
"""Values of `qk_matmul_output_mode`: what the fourth output shows; else the bare products."""


def attention(
    node: Node,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    real_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scaled dot-product attention with grouped heads, a cache and masks; rows with nothing to attend to are zero.

    Returns:
        The result, the keys and values with the cache, and the products at the stage that the node asks for.
    """
    flat = query.ndim == 3
    if flat:
        query = _heads(query, node.integer("q_num_heads", 1))
        key, value = (_heads(values, node.integer("kv_num_heads", 1)) for values in (key, value))
    keys = key if past_key is None else torch.cat((past_key, key), dim=2)
    values = value if past_value is None else torch.cat((past_value, value), dim=2)
    groups = query.shape[1] // keys.shape[1]
    wide_keys, wide_values = (kept.repeat_interleave(groups, dim=1) for kept in (keys, values))
    root = node.number("scale", query.shape[-1] ** -0.5) ** 0.5
    products = (query * root) @ (wide_keys * root).transpose(-1, -2)
    shown = products
    if (cap := node.number("softcap", 0.0)) > 0:
        products = torch.tanh(products / cap) * cap
        shown = products if node.integer("qk_matmul_output_mode", 0) == AFTER_SOFTCAP else shown
    offset = _offset(query, past_key, real_lengths)
    bias = _bias(node, products, mask, offset, real_lengths)
    biased = products + bias
    empty = torch.isneginf(bias.amax(-1, keepdim=True))
    shares = torch.softmax(torch.where(empty, 0.0, biased), dim=-1)
    shares = torch.where(empty, 0.0, shares)
    mode = node.integer("qk_matmul_output_mode", 0)
    shown = {AFTER_BIAS: biased, AFTER_SOFTMAX: shares}.get(mode, shown)
    result = shares @ wide_values
    if flat:
        result = result.transpose(1, 2).flatten(2)
    return result, keys, values, shown


def rotary_embedding(
    node: Node, values: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None
) -> Tensor:
    """Pairs of features turned by angles that grow with the position (Su et al. 2021, arXiv 2104.09864)."""
    flat = values.ndim == 3
    heads = _heads(values, node.integer("num_heads", 1)) if flat else values
    width = node.integer("rotary_embedding_dim", 0) or heads.shape[-1]
    turned, rest = heads[..., :width], heads[..., width:]
    if positions is not None:
        cosines, sines = cosines[positions.long()], sines[positions.long()]
    cosines, sines = cosines.unsqueeze(1), sines.unsqueeze(1)
    interleaved = bool(node.integer("interleaved", 0))
    first, second = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    real = cosines * first - sines * second
    imaginary = sines * first + cosines * second
    pair = torch.stack((real, imaginary), dim=-1).flatten(-2) if interleaved else torch.cat((real, imaginary), dim=-1)
    result = torch.cat((pair, rest), dim=-1)
    return result.transpose(1, 2).flatten(2) if flat else result


def _heads(values: Tensor, count: int) -> Tensor:
    return values.unflatten(-1, (count, -1)).transpose(1, 2)


def _offset(query: Tensor, past_key: Tensor | None, real_lengths: Tensor | None) -> Tensor:
    """How many keys precede the first query, `[sample or 1, 1, 1, 1]`."""
    if past_key is not None:
        return torch.tensor(past_key.shape[2]).reshape(1, 1, 1, 1)
    if real_lengths is not None:
        return (real_lengths.long() - query.shape[2]).reshape(-1, 1, 1, 1)
    return torch.zeros(1, 1, 1, 1, dtype=torch.int64)


def _bias(node: Node, products: Tensor, mask: Tensor | None, offset: Tensor, real_lengths: Tensor | None) -> Tensor:
    """What is added to the products: zero where a key may be seen, minus infinity where not, plus a float mask."""
    queries, keys = products.shape[-2:]
    bias = torch.zeros(queries, keys, dtype=products.dtype)
    if mask is not None:
        additive = torch.where(mask, 0.0, -torch.inf) if mask.dtype is torch.bool else mask
        bias = bias + torch.nn.functional.pad(additive, (0, keys - mask.shape[-1]), value=-torch.inf)
    distance = torch.arange(queries).unsqueeze(1) + offset - torch.arange(keys)
    seen = torch.ones(1, 1, queries, keys, dtype=torch.bool)
    if node.integer("is_causal", 0):
        seen = seen & (distance >= 0)
    left, right = node.integer("left_window_size", -1), node.integer("right_window_size", -1)
    if left >= 0:
        seen = seen & (distance <= left)
    if right >= 0:
        seen = seen & (-distance <= right)
    if real_lengths is not None:
        seen = seen & (torch.arange(keys) < real_lengths.reshape(-1, 1, 1, 1))
    return torch.where(seen, bias, -torch.inf)


OPERATORS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "Attention": attention,
    "RotaryEmbedding": rotary_embedding,
}
"""By operator type, in the domain of ONNX itself."""
