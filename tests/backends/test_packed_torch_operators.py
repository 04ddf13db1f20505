"""Packed modules as operators: compiled and exported they compute what they compute eagerly."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from random_weights import random_weight
from torch import nn

from guidedq.artifacts.packed_weight import pack_weight
from guidedq.backends.packed_torch import matrix, operators
from guidedq.backends.packed_torch.modules import PackedEmbedding, PackedLinear, PackedWeight, packed_module
from guidedq.quant.formats import AffineFormat, EntropyFormat, FloatFormat

MIX = (
    AffineFormat(bits=3, group_size=4),
    AffineFormat(bits=5, group_size=0, outliers=1),
    EntropyFormat(bits=2.5),
    FloatFormat(),
)


def packed(rows: int, columns: int) -> PackedWeight:
    weight = random_weight("w", (rows, columns), MIX, 3, scale=0.1)
    return PackedWeight(pack_weight(weight), "w", (rows, columns), transposed=False)


class PackedNetwork(nn.Module):
    """An embedding tied to a head, a linear layer, and a convolution whose weight is a property."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = PackedEmbedding(packed(12, 16))
        self.mix = PackedLinear(packed(16, 16), torch.linspace(-1, 1, 16))
        whole = packed(16, 16 * 3)
        reshaped = PackedWeight(whole.blob, "w", (16, 16, 3), transposed=False)
        self.convolve = packed_module(nn.Conv1d(16, 16, 3, padding=1), "weight", reshaped)
        self.head = PackedLinear(self.embed.packed, None)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.mix(self.embed(tokens)))
        return self.head(self.convolve(hidden.transpose(1, 2)).transpose(1, 2))


@pytest.fixture(scope="module")
def network() -> PackedNetwork:
    return PackedNetwork().eval().requires_grad_(False)


TOKENS = torch.tensor([[1, 3, 11, 0]])


def test_a_compiled_network_is_one_graph_and_gives_the_same_numbers(network, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of types cannot be traced
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(TOKENS), network(TOKENS))


def test_gradients_pass_a_compiled_layer(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    layer = PackedLinear(packed(12, 16), None)
    inputs = torch.randn(2, 16, requires_grad=True)
    torch.compile(layer, backend="aot_eager", fullgraph=True)(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, layer.weight.sum(0).expand(2, -1))


def test_an_exported_network_survives_the_disk_and_takes_other_lengths(network, tmp_path):
    length = torch.export.Dim("length", min=2, max=32)
    exported = torch.export.export(network, (TOKENS,), dynamic_shapes=({1: length},))
    called = [str(node.target) for node in exported.graph.nodes if "guidedq" in str(node.target)]
    assert called == [f"guidedq.packed_{kind}.default" for kind in ("rows", "linear", "matrix", "linear")]
    torch.export.save(exported, tmp_path / "network.pt2")
    again = torch.export.load(tmp_path / "network.pt2").module()
    longer = torch.tensor([[5, 5, 2, 7, 1, 0, 9]])
    for tokens in (TOKENS, longer):
        assert torch.equal(again(tokens), network(tokens))
    assert (tmp_path / "network.pt2").stat().st_size < 200_000


def test_the_operators_keep_what_they_promise_to_torch():
    weight = packed(6, 16)
    values, index = torch.randn(2, 3, 16), torch.tensor([4, 4, 0])
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(operators.packed_matrix, weight.operands, test_utils=checks)
    torch.library.opcheck(operators.packed_rows, (index, *weight.operands), test_utils=checks)
    torch.library.opcheck(operators.packed_linear, (values, torch.ones(6), *weight.operands), test_utils=checks)


def test_a_large_matrix_in_parts_gives_the_same_as_an_operator(monkeypatch):
    monkeypatch.setattr(matrix, "LARGE_MATRIX", 0)
    weight = packed(6, 16)
    values = torch.randn(2, 3, 16)
    expected = nn.functional.linear(values, weight.matrix(), torch.ones(6))
    found = operators.packed_linear(values, torch.ones(6), *weight.operands)
    torch.testing.assert_close(found, expected)
