"""The kernels in Triton against the reference dequantization: on a GPU, or in Triton's interpreter where there is none.

That the interpreter runs them says nothing of a GPU's compiler, so they are also compiled for one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies
from random_weights import formats, random_weight
from tolerances import UNIT_FLOAT32
from torch import nn

pytest.importorskip("triton")

from guidedq.artifacts.packed_weight import pack_weight, segment_rows
from guidedq.backends.packed_torch import kernels, matrix, triton_kernels
from guidedq.backends.packed_torch.kernels import TritonKernels
from guidedq.backends.packed_torch.matrix import FEW_INPUTS
from guidedq.backends.packed_torch.modules import PackedEmbedding, PackedLinear, PackedWeight
from guidedq.backends.packed_torch.native.calls import SCALES
from guidedq.backends.packed_torch.triton_kernels import dequantize_rows, multiply_rows
from guidedq.quant.formats import AffineFormat, EntropyFormat, FloatFormat, Format
from guidedq.quant.packing import read_layout

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
MIX = (
    *(AffineFormat(bits=bits, group_size=64) for bits in (3, 4)),
    AffineFormat(bits=5, group_size=20, symmetric=True, outliers=2),
    EntropyFormat(bits=2.5),
    FloatFormat(dtype="bf16"),
)
COLUMNS = 270
mixes = strategies.lists(formats, min_size=1, max_size=3, unique=True)
shapes = {"rows": strategies.integers(3, 9), "columns": strategies.integers(3, 300)}
few = settings(max_examples=12)
"""The interpreter takes some hundredths of a second for each segment."""
COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from guidedq.backends.packed_torch import triton_kernels
pointers = {"outputs": "*fp32", "inputs": "*fp32", "listed": "*i32", "places": "*i32", "blob": "*u8", "powers": "*fp32"}
for name, constants in eval(sys.argv[1]):
    kernel = getattr(triton_kernels, name)
    kinds = {name: pointers.get(name, "constexpr" if name in constants else "i32") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=kinds, constexprs=constants)
    compiled = compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": True})
    print(len(compiled.asm["cubin"]) > 0)
"""


@few
@given(mixes, *shapes.values(), strategies.integers(0, 2**31), strategies.integers(0, 3))
def test_rows_are_the_reference_bit_for_bit(mix, rows, columns, seed, shift):
    weight = random_weight("w", (rows, columns), mix, seed)
    blob = pack_weight(weight, streams=False)
    layout = read_layout(blob, "w", weight.shape)
    places = torch.cat(segment_rows(blob, "w", layout)).argsort().int().to(DEVICE)
    odd = torch.cat((torch.full((shift,), 255, dtype=torch.uint8), blob)).to(DEVICE)[shift:]
    wanted = torch.tensor([rows - 1, 0, 2, 2])
    assert torch.equal(dequantize_rows(layout, odd, places).cpu(), weight.dequantize())
    assert torch.equal(dequantize_rows(layout, odd, places[wanted]).cpu(), weight.dequantize()[wanted])


@few
@given(mixes, *shapes.values(), strategies.integers(0, 2**31), strategies.integers(0, FEW_INPUTS))
def test_products_are_within_the_error_of_a_float32_sum(mix, rows, columns, seed, count):
    weight = random_weight("w", (rows, columns), mix, seed)
    inputs = torch.randn(count, columns, generator=torch.Generator().manual_seed(seed))
    blob = pack_weight(weight, streams=False)
    layout = read_layout(blob, "w", weight.shape)
    listed = torch.cat(segment_rows(blob, "w", layout)).int().to(DEVICE)
    found = multiply_rows(layout, blob.to(DEVICE), listed, inputs.to(DEVICE)).cpu()
    whole = weight.dequantize().double()
    bound = (columns + 1) * UNIT_FLOAT32 * (inputs.double().abs() @ whole.abs().t())
    assert bool(((found - inputs.double() @ whole.t()).abs() <= bound).all())


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_width_is_read_and_multiplied(bits, symmetric):
    mix = (AffineFormat(bits=bits, group_size=20 if symmetric else 48, symmetric=symmetric, outliers=1),)
    packed = packed_of(mix, rows=5).to(DEVICE)
    expected = random_weight("w", (5, COLUMNS), mix, 5, scale=0.1).dequantize()
    found = TritonKernels().dequantize(packed.held, range(1, 5))
    assert torch.equal(found.cpu(), expected[1:])
    inputs = torch.randn(2, COLUMNS)
    product = TritonKernels().multiply(packed.held, inputs.to(DEVICE)).cpu()
    torch.testing.assert_close(product, inputs @ expected.t(), rtol=0.0, atol=1e-4)


@pytest.mark.skipif(GPU, reason="only the interpreter tells what is read")
@pytest.mark.parametrize("columns", [3, 8, 257])
def test_nothing_outside_the_tensors_is_read(columns, monkeypatch):
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    loads = interpreter._interpreter.load
    weight = random_weight("w", (6, columns), (*MIX[2:], AffineFormat(bits=7, group_size=16)), 1)
    blob = pack_weight(weight, streams=False)
    layout = read_layout(blob, "w", weight.shape)
    listed = torch.cat(segment_rows(blob, "w", layout)).int()
    places, inputs = listed.argsort().int(), torch.randn(3, columns)
    spans = [(held.data_ptr(), held.nbytes) for held in (blob, listed, places, inputs, SCALES)]
    read: list[int] = []

    def watched(addresses, mask, *others):
        for address in addresses[mask.astype(bool)].tolist():
            read.append(address)
            assert any(start <= address < start + size for start, size in spans)
        return loads(addresses, mask, *others)

    watching = SimpleNamespace(load=watched, store=interpreter._interpreter.store)
    monkeypatch.setattr(interpreter, "_interpreter", watching)
    dequantize_rows(layout, blob, places)
    multiply_rows(layout, blob, listed, inputs)
    assert {blob.data_ptr() + part.offset for part in layout.segments} <= set(read)


def packed_of(mix: tuple[Format, ...], rows: int = 9) -> PackedWeight:
    weight = random_weight("w", (rows, COLUMNS), mix, 5, scale=0.1)
    return PackedWeight(pack_weight(weight), "w", (rows, COLUMNS), transposed=False)


@pytest.fixture
def packed(monkeypatch) -> PackedWeight:
    """A packed weight that Triton's kernels read."""
    monkeypatch.setattr(matrix, "kernels_on", lambda _: TritonKernels())
    return packed_of(MIX).to(DEVICE)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2**-4)])
@pytest.mark.parametrize("count", [0, 1, FEW_INPUTS + 1])
def test_a_linear_layer_multiplies_by_the_dequantized_weight(packed, count, dtype, tolerance):
    layer = PackedLinear(packed, torch.linspace(-1, 1, 9, device=DEVICE)).to(dtype)
    inputs = torch.randn(count, 2, COLUMNS, device=DEVICE, dtype=dtype)[:, 1]  # not contiguous
    found = layer(inputs)
    assert found.dtype is dtype
    expected = nn.functional.linear(inputs.double(), layer.weight.double(), layer.bias.double())
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_large_matrix_is_unpacked_part_by_part(packed, monkeypatch):
    monkeypatch.setattr(matrix, "kernels_on", lambda _: TritonKernels(tile=2 * COLUMNS))
    assert [len(part) for _, part in packed.held.parts()] == [2, 2, 2, 2, 1]
    inputs = torch.randn(FEW_INPUTS + 1, COLUMNS, device=DEVICE)
    torch.testing.assert_close(packed.multiply(inputs), inputs @ packed.matrix().t(), rtol=0.0, atol=1e-4)


def test_an_embedding_looks_up_rows_in_any_order(packed):
    indices = torch.tensor([[8, 0, 3], [3, 3, 1]], device=DEVICE)
    assert torch.equal(PackedEmbedding(packed)(indices), packed.matrix()[indices])


@pytest.mark.skipif(GPU, reason="on a GPU the error comes later, and ends the process's use of it")
def test_unknown_rows_are_refused(packed):
    for unknown in (9, -1):
        with pytest.raises((IndexError, RuntimeError), match="out of range"):
            packed.rows(torch.tensor([0, unknown]))


def test_outliers_that_changed_since_they_were_loaded_write_nowhere_else():
    packed = packed_of((AffineFormat(bits=4, outliers=1),), rows=4)
    before = packed.matrix()
    packed.blob[-4 * 4 : -2 * 4] = 255
    found = TritonKernels().dequantize(packed.to(DEVICE).held, range(4)).cpu()
    assert int((found != before).sum()) <= 4


def test_triton_is_used_where_it_runs_and_its_absence_is_told_once(monkeypatch):
    choose = kernels._triton_on.__wrapped__
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert choose(DEVICE) == TritonKernels()
    with monkeypatch.context() as broken:
        broken.setattr(triton_kernels, "multiply_rows", None)
        broken.setattr(triton_kernels, "try_on", lambda _: 1 / 0)
        with pytest.warns(UserWarning, match="plain torch multiplies"):
            assert choose(DEVICE) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert choose(DEVICE) is None
    monkeypatch.setitem(sys.modules, "guidedq.backends.packed_torch.triton_kernels", None)
    assert choose(DEVICE) is None


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu(tmp_path):
    tile = {"height": triton_kernels.ROWS_AT_ONCE, "words": triton_kernels.WORDS_AT_ONCE}
    kinds = [(0, 3, 0, 0), (0, 4, 1, 0), (1, 8, 0, 1), (2, 16, 0, 0), (3, 16, 0, 0), (4, 32, 0, 0)]
    names = ("kind", "bits", "symmetric", "scaled")
    constants = [tile | {"group": 64} | dict(zip(names, kind, strict=True)) for kind in kinds]
    wanted = [("_dequantize", each) for each in constants] + [("_multiply", {"held": 8} | constants[0])]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE, repr(wanted)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"] * len(wanted), done.stderr


@pytest.mark.skipif(not GPU, reason="no GPU")
def test_a_layer_on_a_gpu_computes_what_it_does_on_the_cpu():
    layer = PackedLinear(packed_of(MIX), None)
    for count in (1, 40):
        inputs = torch.randn(count, COLUMNS)
        expected = layer.cpu()(inputs)
        layer.to(DEVICE)
        assert layer.packed.held._kernels(inputs.to(DEVICE)) == TritonKernels()
        torch.testing.assert_close(layer(inputs.to(DEVICE)).cpu(), expected, rtol=0.0, atol=1e-3)
