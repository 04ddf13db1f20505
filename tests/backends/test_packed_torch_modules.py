"""Packed modules against the modules whose place they take."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, strategies
from random_weights import formats, random_weight
from torch import nn
from transformers.pytorch_utils import Conv1D

from guidedq.artifacts.packed_weight import pack_weight
from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.backends.packed_torch.modules import PackedEmbedding, PackedLinear, PackedWeight, packed_module
from guidedq.quant.formats import AffineFormat, Format

MIX = (AffineFormat(bits=3, group_size=4), AffineFormat(bits=5, group_size=0, outliers=1), AffineFormat(bits=2))
mixes = strategies.lists(formats, min_size=1, max_size=4, unique=True)


def packed_of(weight: QuantizedWeight, shape: tuple[int, ...], *, transposed: bool = False) -> PackedWeight:
    return PackedWeight(pack_weight(weight), weight.name, shape, transposed=transposed)


def mixed(rows: int, columns: int, mix: tuple[Format, ...] = MIX) -> QuantizedWeight:
    return random_weight("w", (rows, columns), mix, 3, scale=0.1)


@given(mixes, strategies.integers(4, 9), strategies.integers(3, 20), strategies.integers(0, 2**31), strategies.data())
def test_matrix_and_rows_are_the_reference_bit_for_bit(mix, rows, columns, seed, data):
    weight = random_weight("w", (rows, columns), mix, seed)
    packed = packed_of(weight, (rows, columns))
    index = torch.tensor(data.draw(strategies.lists(strategies.integers(0, rows - 1), max_size=7)), dtype=torch.int64)
    assert torch.equal(packed.matrix(), weight.dequantize())
    assert torch.equal(packed.rows(index), weight.dequantize()[index])


def test_a_linear_layer_multiplies_by_the_dequantized_weight():
    weight = mixed(6, 8)
    original = nn.Linear(8, 6)
    module = packed_module(original, "weight", packed_of(weight, (6, 8)))
    values = torch.randn(2, 3, 8)
    assert isinstance(module, PackedLinear)
    torch.testing.assert_close(module(values), nn.functional.linear(values, weight.dequantize(), original.bias))


def test_a_transposed_layer_multiplies_by_the_transpose():
    weight = mixed(6, 8)
    original = Conv1D(6, 8)
    module = packed_module(original, "weight", packed_of(weight, (8, 6), transposed=True))
    values = torch.randn(2, 3, 8)
    assert torch.equal(module.weight, weight.dequantize().t())
    torch.testing.assert_close(module(values), values @ weight.dequantize().t() + original.bias)


def test_an_embedding_looks_up_dequantized_rows_and_refuses_unknown_ones():
    weight = mixed(9, 5)
    module = packed_module(nn.Embedding(9, 5, padding_idx=0), "weight", packed_of(weight, (9, 5)))
    indices = torch.tensor([[0, 8, 3], [3, 3, 1]], dtype=torch.int32)
    assert isinstance(module, PackedEmbedding)
    assert torch.equal(module(indices), weight.dequantize()[indices])
    assert module(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 5)
    for unknown in (9, -1):
        with pytest.raises(IndexError):
            module(torch.tensor([unknown]))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_keeps_its_own_forward(groups):
    original = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups, padding_mode="reflect")
    twin = copy.deepcopy(original)
    weight = mixed(6, 9 * 4 // groups)
    twin.weight.data = weight.dequantize().reshape(twin.weight.shape)
    module = packed_module(original, "weight", packed_of(weight, tuple(twin.weight.shape)))
    values = torch.randn(2, 4, 7, 7)
    assert type(module).__name__ == "PackedConv2d"
    assert torch.equal(module(values), twin(values))
    assert [name for name, _ in module.named_parameters()] == ["bias"]
    assert not hasattr(nn.Conv2d(1, 1, 1), "packed_weight")


class ScaledEmbedding(nn.Embedding):
    """A subclass with a forward of its own, as some translation models have."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 3.0 * super().forward(input)


def test_a_subclass_keeps_its_own_forward():
    weight = mixed(9, 5)
    module = packed_module(ScaledEmbedding(9, 5), "weight", packed_of(weight, (9, 5)))
    assert isinstance(module, ScaledEmbedding)
    assert torch.equal(module(torch.tensor([2, 2])), 3.0 * weight.dequantize()[[2, 2]])


def test_the_blob_is_the_only_weight_in_memory_and_in_the_state():
    packed = packed_of(mixed(64, 256), (64, 256))
    module = PackedLinear(packed, None)
    assert list(module.state_dict()) == ["packed.blob"]
    held = sum(values.nbytes for values in module.buffers())
    assert held == len(packed.blob) + 2 * 4 * 64  # and two 32-bit indices a row


def test_a_change_of_dtype_changes_results_and_no_stored_byte():
    packed = packed_of(mixed(6, 8), (6, 8))
    whole, blob = packed.matrix(), packed.blob.clone()
    packed.half()
    assert torch.equal(packed.matrix(), whole.half())
    assert torch.equal(packed.rows(torch.tensor([4])), whole[[4]].half())
    assert torch.equal(packed.blob, blob)
