"""The kernels in C against the reference dequantization, in every instruction set that the processor has."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, strategies
from native_library import compiled
from random_weights import formats, random_weight
from tolerances import UNIT_FLOAT32
from torch import Tensor, nn

from guidedq.artifacts.packed_weight import pack_weight, segment_rows
from guidedq.artifacts.patched_segment import PatchedSegment, patch
from guidedq.artifacts.quantized_weight import AffineSegment, EntropySegment, QuantizedWeight
from guidedq.backends.packed_torch import kernels
from guidedq.backends.packed_torch.modules import PackedEmbedding, PackedLinear, PackedWeight
from guidedq.backends.packed_torch.native.calls import (
    INTEGER_BLOCK,
    MOST_INPUTS,
    dequantize_rows,
    describe,
    multiply_rows,
)
from guidedq.errors import ArtifactError
from guidedq.quant.exponents import scales_of
from guidedq.quant.formats import AffineFormat, EntropyFormat, FloatFormat
from guidedq.quant.grid import expand_groups
from guidedq.quant.packing import read_layout

MIX = (
    *(AffineFormat(bits=bits, group_size=64) for bits in (3, 4)),
    AffineFormat(bits=5, group_size=20, symmetric=True, outliers=2),
    AffineFormat(bits=8, group_size=7),
    EntropyFormat(bits=2.5),
    FloatFormat(dtype="bf16"),
)
COLUMNS = 203
LEAST_FOR_TWO_THREADS = 2 * (3 << 17)
"""Bytes of a weight; `BYTES_A_THREAD` in `kernels.c`."""
mixes = strategies.lists(formats, min_size=1, max_size=5, unique=True)
shapes = {"rows": strategies.integers(5, 12), "columns": strategies.integers(3, 300)}


class Kernels:
    """A packed weight as the kernels take it, the blob at an odd address if so said."""

    def __init__(self, weight: QuantizedWeight, shift: int = 0) -> None:
        blob = pack_weight(weight, streams=False)
        layout = read_layout(blob, weight.name, weight.shape)
        listed = torch.cat(segment_rows(blob, weight.name, layout))
        self.blob = torch.cat((torch.zeros(shift, dtype=torch.uint8), blob))[shift:]
        self.description = describe(layout, len(blob))
        self.listed, self.places, self.columns = listed.int(), listed.argsort().int(), weight.shape[1]

    def multiply(self, inputs: Tensor, instruction_set: int = 0) -> Tensor:
        arguments = (self.description, self.blob, self.listed, inputs)
        return multiply_rows(compiled(), *arguments, instruction_set=instruction_set)

    def rows(self, wanted: Tensor | range, instruction_set: int = 0) -> Tensor:
        arguments = (self.description, self.blob, self.places, wanted, self.columns)
        return dequantize_rows(compiled(), *arguments, instruction_set=instruction_set)


def summed_sizes(weight: QuantizedWeight, *, whole: bool) -> Tensor:
    """What the kernels add up for each weight: codes and zero points apart, patches, what outliers stand in place of.

    Args:
        weight: What is multiplied.
        whole: Whether nothing is taken from codes before, however wide they are.
    """
    sizes = torch.empty(weight.shape)
    for part in patch(weight.segments):
        values = part.dequantize().abs()
        if isinstance(part, PatchedSegment):
            codes = 3 * 2 ** (part.format.bits - 1) if whole or part.format.bits <= 4 else 0
            values = 2 * values + codes * scales_of(part.column_exponents) * scales_of(part.row_exponents)[:, None]
        if isinstance(part, AffineSegment):
            middle = 2 ** (part.format.bits - 1) if part.format.bits > 4 and not whole else 0
            zero_points = expand_groups(part.grid.zero_points.float(), weight.shape[1], part.format)
            scales = expand_groups(part.grid.scales.float(), weight.shape[1], part.format)
            values += 3 * scales * ((part.codes.float() - middle).abs() + (zero_points - middle).abs())
            values += 2 ** (part.format.bits - 1) * scales if whole else 0.0
        sizes[part.rows] = values
    return sizes.double()


def rounded_sizes(weight: QuantizedWeight, inputs: Tensor, sizes: Tensor) -> Tensor:
    """For each product, the sizes of weights times the largest input of their block: inputs become 24-bit numbers."""
    found = torch.empty(len(inputs), weight.shape[0], dtype=torch.float64)
    for part in weight.segments:
        columns = scales_of(part.column_exponents) if isinstance(part, EntropySegment) else torch.ones(weight.shape[1])
        scaled = nn.functional.pad((inputs * columns).abs(), (0, -weight.shape[1] % INTEGER_BLOCK))
        largest = scaled.unflatten(1, (-1, INTEGER_BLOCK)).amax(2).repeat_interleave(INTEGER_BLOCK, 1)
        found[:, part.rows] = largest[:, : weight.shape[1]].double() @ (sizes[part.rows] / columns.double()).t()
    return found


def instruction_sets() -> range:
    return range(len(compiled().instruction_sets))


@given(mixes, *shapes.values(), strategies.integers(0, 2**31), strategies.integers(0, 3))
def test_rows_are_the_reference_bit_for_bit(mix, rows, columns, seed, shift):
    weight = random_weight("w", (rows, columns), mix, seed)
    kernels, reference = Kernels(weight, shift), weight.dequantize()
    wanted = torch.tensor([rows - 1, 0, 2, 2])
    for number in instruction_sets():
        assert torch.equal(kernels.rows(range(rows), number), reference)
        assert torch.equal(kernels.rows(range(1, 3), number), reference[1:3])
        assert torch.equal(kernels.rows(wanted, number), reference[wanted])


@given(mixes, *shapes.values(), strategies.integers(0, 2**31), strategies.integers(0, MOST_INPUTS))
def test_products_are_within_the_error_of_a_float32_sum(mix, rows, columns, seed, count):
    weight = random_weight("w", (rows, columns), mix, seed)
    inputs = torch.randn(count, columns, generator=torch.Generator().manual_seed(seed))
    kernels = Kernels(weight, seed % 4)
    exact = inputs.double() @ weight.dequantize().double().t()
    additions = columns / 8 + 32  # in each of at least eight lanes, then across lanes and at the ends
    for number, name in enumerate(compiled().instruction_sets):
        sizes = summed_sizes(weight, whole=name == "avx512vnni")
        bound = additions * UNIT_FLOAT32 * (inputs.double().abs() @ sizes.t())
        if name == "avx512vnni":
            bound += 2 * UNIT_FLOAT32 * rounded_sizes(weight, inputs, sizes)
        assert bool(((kernels.multiply(inputs, number) - exact).abs() <= bound).all())


@pytest.mark.parametrize(
    "format", [EntropyFormat(bits=5.0), AffineFormat(bits=8, group_size=0, symmetric=True)], ids=str
)
def test_inputs_far_from_zero_are_multiplied_as_well_as_others(format):
    weight = random_weight("w", (32, 4096), (format,), 0, scale=0.02)
    inputs = 1 + torch.randn(4, 4096) / 100
    exact = inputs.double() @ weight.dequantize().double().t()
    size = inputs.double().abs() @ weight.dequantize().double().abs().t()
    for number, name in enumerate(compiled().instruction_sets):
        worst = float(((Kernels(weight).multiply(inputs, number) - exact).abs() / size).max())
        assert worst < 4 * UNIT_FLOAT32, name


def test_threads_change_no_bit():
    weight = random_weight("w", (1500, 1400), MIX, 1)
    kernels, inputs, found = Kernels(weight), torch.randn(3, 1400), []
    assert len(kernels.blob) > LEAST_FOR_TWO_THREADS
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append((kernels.multiply(inputs), kernels.rows(range(1500))))
    torch.set_num_threads(before)
    assert all(torch.equal(mine, other) for pair in found[1:] for mine, other in zip(pair, found[0], strict=True))


def test_a_blob_that_changed_since_it_was_loaded_is_refused():
    weight = random_weight("w", (4, 9), (AffineFormat(bits=4, outliers=1),), 0)
    kernels = Kernels(weight)
    outlier_columns = slice(len(kernels.blob) - 4 * 4, len(kernels.blob) - 2 * 4)
    kernels.blob[outlier_columns] = 255
    with pytest.raises(ArtifactError, match="not what it was"):
        kernels.multiply(torch.zeros(1, 9))
    with pytest.raises(ArtifactError, match="not what it was"):
        kernels.rows(range(4))
    kernels = Kernels(weight)
    kernels.description = describe(read_layout(kernels.blob, "w", (4, 9)), len(kernels.blob) - 1)
    with pytest.raises(ArtifactError, match="not what it was"):
        kernels.multiply(torch.zeros(1, 9))


def test_unknown_rows_are_refused():
    kernels = Kernels(random_weight("w", (4, 9), MIX[:2], 0))
    for unknown in (4, -1):
        with pytest.raises(IndexError):
            kernels.rows(torch.tensor([0, unknown]))


@pytest.fixture(params=["kernels", "torch"])
def packed(request, monkeypatch) -> PackedWeight:
    """A packed weight, in a world with kernels and in one without."""
    monkeypatch.setattr(kernels, "library", compiled if request.param == "kernels" else lambda: None)
    weight = random_weight("w", (40, COLUMNS), MIX, 5, scale=0.1)
    return PackedWeight(pack_weight(weight), "w", (40, COLUMNS), transposed=False)


def same(module: nn.Module, inputs: Tensor, tolerance: float = 1e-5) -> None:
    """The tolerance is relative to the largest sum of magnitudes."""
    weight = module.weight.double()
    expected = nn.functional.linear(inputs.double(), weight, module.bias.double())
    sizes = (inputs.double().abs() @ weight.abs().t()).flatten().tolist()
    found = module(inputs)
    assert found.dtype is inputs.dtype
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=tolerance * (1.0 + max(sizes, default=0.0)))


@pytest.mark.parametrize("count", [0, 1, 8, 9, 40])
def test_a_linear_layer_is_right_for_any_number_and_order_of_inputs(packed, count):
    module = PackedLinear(packed, torch.randn(40))
    same(module, torch.randn(count, COLUMNS))
    same(module, torch.randn(COLUMNS, count).t())
    same(module, torch.randn(count, 1, 2 * COLUMNS)[..., ::2])
    assert module(torch.randn(COLUMNS)).shape == (40,)
    assert module(torch.randn(2, 0, COLUMNS)).shape == (2, 0, 40)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10), (torch.float64, 1e-12)]
)
def test_a_linear_layer_computes_in_its_own_dtype(packed, dtype, tolerance):
    module = PackedLinear(packed, torch.randn(40)).to(dtype)
    same(module, torch.randn(3, COLUMNS, dtype=dtype), tolerance)
    with pytest.raises(RuntimeError):
        module(torch.randn(3, COLUMNS))


def test_inputs_of_another_length_are_refused(packed):
    with pytest.raises(RuntimeError):
        PackedLinear(packed, None)(torch.randn(2, COLUMNS + 1))


def test_inputs_that_do_not_lie_in_memory_are_multiplied_all_the_same(packed):
    layer, inputs = PackedLinear(packed, None), torch.randn(2, COLUMNS)
    expected = inputs @ packed.matrix().t()
    found = {
        "negated": -layer(torch._neg_view(inputs)),
        "imaginary": -layer(torch.complex(inputs, inputs).conj().imag),
        "mapped": torch.vmap(layer)(inputs[None])[0],
    }
    for name, outputs in found.items():
        torch.testing.assert_close(
            outputs, expected, rtol=0.0, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
    torch.testing.assert_close(layer(inputs[:1].expand(2, -1)), expected[:1].expand(2, -1), rtol=0.0, atol=1e-3)
    assert not layer(torch._efficientzerotensor(2, COLUMNS)).any()


def test_more_inputs_than_one_call_takes_are_refused():
    kernels = Kernels(random_weight("w", (4, 9), MIX[:2], 0))
    with pytest.raises(ArtifactError):
        kernels.multiply(torch.zeros(MOST_INPUTS + 1, 9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_an_embedding_refuses_indices_as_torch_does(packed, dtype):
    indices = torch.ones(3, dtype=dtype)
    with pytest.raises(RuntimeError):
        nn.functional.embedding(indices, packed.matrix())
    with pytest.raises(TypeError, match="int32 or int64"):
        PackedEmbedding(packed)(indices)


def test_gradients_of_the_inputs_are_those_of_the_dequantized_layer(packed):
    inputs = torch.randn(2, COLUMNS, requires_grad=True)
    PackedLinear(packed, None)(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, packed.matrix().sum(0).expand(2, -1), rtol=1e-4, atol=1e-4)


def test_a_copy_computes_the_same_and_shares_nothing(packed):
    module = PackedLinear(packed, torch.randn(40))
    inputs, twin = torch.randn(1, COLUMNS), copy.deepcopy(module)
    expected = module(inputs)
    packed.blob.zero_()
    assert torch.equal(twin(inputs), expected)


def test_an_embedding_takes_indices_of_any_kind(packed):
    module = PackedEmbedding(packed)
    indices = torch.arange(12, dtype=torch.int32).reshape(3, 4).t()
    assert torch.equal(module(indices), packed.matrix()[indices.long()])


def test_a_large_matrix_is_never_whole_in_memory(monkeypatch):
    monkeypatch.setattr(kernels, "library", compiled)
    shape = (2 * kernels.TILE // 512, 512)
    weight = random_weight("w", shape, (AffineFormat(bits=2), AffineFormat(bits=3)), 0)
    packed = PackedWeight(pack_weight(weight), "w", shape, transposed=False)
    assert max(part.numel() for _, part in packed.held.parts()) <= kernels.TILE
    same(PackedLinear(packed, torch.zeros(shape[0])), torch.randn(9, 512))
