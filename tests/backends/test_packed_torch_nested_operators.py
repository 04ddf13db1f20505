"""Nested modules as operators: compiled and exported they compute what they compute eagerly at the precision set."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from nested_weights import random_nested
from torch import nn

import guidedq
from guidedq.backends.packed_torch import operators
from guidedq.backends.packed_torch.modules import PackedEmbedding, PackedLinear, packed_module
from guidedq.backends.packed_torch.planes import PlaneWeight
from guidedq.errors import ArtifactError

TOKENS = torch.tensor([[1, 3, 11, 0], [2, 2, 9, 7]])
POSITIONS = torch.tensor([[3, 5, 4, 4], [5, 3, 3, 4]])


def nested(rows: int, columns: int, shape: tuple[int, ...] | None = None, *, transposed: bool = False) -> PlaneWeight:
    return PlaneWeight(random_nested((rows, columns)), shape or (rows, columns), transposed=transposed)


class NestedNetwork(nn.Module):
    """An embedding tied to a head, linear layers, and where wanted a convolution whose weight is a property."""

    def __init__(self, *, convolves: bool) -> None:
        super().__init__()
        self.embed = PackedEmbedding(nested(12, 16))
        self.mix = PackedLinear(nested(16, 16, transposed=True), torch.linspace(-1, 1, 16))
        convolution = nn.Conv1d(16, 16, 3, padding=1)
        packed = nested(16, 16 * 3, (16, 16, 3))
        self.convolve = packed_module(convolution, "weight", packed) if convolves else nn.Identity()
        self.head = PackedLinear(self.embed.packed, None)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.mix(self.embed(tokens)))
        return self.head(self.convolve(hidden.transpose(1, 2)).transpose(1, 2))


@pytest.fixture
def network() -> NestedNetwork:
    return NestedNetwork(convolves=True).eval().requires_grad_(False)


@pytest.fixture
def untyped(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of types cannot be traced


@pytest.mark.usefixtures("untyped")
def test_a_compiled_network_is_one_graph_and_follows_the_precision_that_is_set(network):
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    seen = []
    for bits in (5, 3, 4, 5):
        guidedq.set_precision(network, bits)
        seen.append(compiled(TOKENS))
        assert torch.equal(seen[-1], network(TOKENS))
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[3])
    with guidedq.at_precision(compiled, 3):
        assert torch.equal(compiled(TOKENS), seen[1])


@pytest.mark.usefixtures("untyped")
def test_compiled_code_reads_precisions_by_position_at_every_call_without_being_traced_anew():
    network = NestedNetwork(convolves=False).eval().requires_grad_(False)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    guidedq.set_precision(network, POSITIONS)
    first = compiled(TOKENS)
    assert torch.equal(first, network(TOKENS))
    guidedq.set_precision(network, 8 - POSITIONS)
    with torch.compiler.set_stance("fail_on_recompile"):
        second = compiled(TOKENS)
    assert torch.equal(second, network(TOKENS))
    assert not torch.equal(first, second)


def test_an_exported_network_keeps_its_precision_survives_the_disk_and_takes_other_lengths(network, tmp_path):
    guidedq.set_precision(network, 3)
    length = torch.export.Dim("length", min=2, max=32)
    exported = torch.export.export(network, (TOKENS,), dynamic_shapes=({1: length},))
    called = [str(node.target) for node in exported.graph.nodes if "guidedq" in str(node.target)]
    assert called == [f"guidedq.nested_{kind}.default" for kind in ("rows", "linear", "matrix", "linear")]
    torch.export.save(exported, tmp_path / "network.pt2")
    again = torch.export.load(tmp_path / "network.pt2").module()
    longer = torch.tensor([[5, 5, 2, 7, 1, 0, 9], [0, 1, 2, 3, 4, 5, 6]])
    expected = [network(tokens) for tokens in (TOKENS, longer)]
    guidedq.set_precision(network, 5)
    for tokens, values in zip((TOKENS, longer), expected, strict=True):
        assert torch.equal(again(tokens), values)
        assert not torch.equal(network(tokens), values)


def test_precisions_by_position_are_no_constant_to_export():
    network = NestedNetwork(convolves=False).eval()
    guidedq.set_precision(network, POSITIONS)
    with pytest.raises(ArtifactError, match="an exported program has one precision"):
        torch.export.export(network, (TOKENS,))


@pytest.mark.parametrize("positions", [None, POSITIONS[:, :3]])
def test_the_operators_keep_what_they_promise_to_torch(positions):
    weight = nested(6, 16)
    weight.read_at(4 if positions is None else positions)
    values, index = torch.randn(2, 3, 16), torch.tensor([[4, 4, 0], [1, 2, 5]])
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(operators.nested_rows, (index, *weight.operands), test_utils=checks)
    torch.library.opcheck(operators.nested_linear, (values, torch.ones(6), *weight.operands), test_utils=checks)
    if positions is None:
        torch.library.opcheck(operators.nested_matrix, weight.operands, test_utils=checks)
