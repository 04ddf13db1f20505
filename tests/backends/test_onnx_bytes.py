"""The footprint bounds the file from above, closely, for any allocation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from onnx_models import ALL_WIDTHS, counted_bytes, onnx_model, quantized, random_choice

from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.ir.graph import Site, Storage, Use, UseKind
from guidedq.ir.model import InputSpec, Model
from guidedq.quant.formats import AffineFormat

LIBRARY_BYTES = 5000
"""The functions and constants that some allocations need and others do not, all counted for every allocation."""
SITE_BYTES = 40
MIXED_BYTES = 250
"""A site whose rows are mixed in the least costly way may take this much less than is counted."""


def network(folder: Path, *, opset: int = 21, width: int = 172, small: bool = False) -> Model:
    """A tied embedding, a linear layer stored either way, and a convolution that reads their output as an image."""
    vocabulary = 40 if small else 5400
    mean = helper.make_node("ReduceMean", ["g", "one"], ["h"], keepdims=0)
    if opset < 18:
        mean = helper.make_node("ReduceMean", ["g"], ["h"], axes=[1], keepdims=0)
    nodes = [
        helper.make_node("Gather", ["e", "i"], ["a"], name="embedding"),
        helper.make_node("MatMul", ["a", "u"], ["b"], name="up"),
        helper.make_node("Transpose", ["d"], ["dt"], perm=[1, 0]),
        helper.make_node("MatMul", ["b", "dt"], ["c"], name="down"),
        helper.make_node("Unsqueeze", ["c", "one"], ["f"]),
        helper.make_node("Conv", ["f", "k"], ["g"], pads=[1, 1, 1, 1], name="mix"),
        mean,
        helper.make_node("Transpose", ["e"], ["et"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "et"], ["y"], name="head"),
    ]
    hidden = 64 if small else 400
    generator = np.random.default_rng(0)
    shapes = {"e": (vocabulary, width), "u": (width, hidden), "d": (width, hidden), "k": (8, 1, 3, 3)}
    weights = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    kinds = {
        "e": ((UseKind.EMBEDDING, UseKind.LINEAR), Storage.OUT_IN),
        "u": ((UseKind.LINEAR,), Storage.IN_OUT),
        "d": ((UseKind.LINEAR,), Storage.OUT_IN),
        "k": ((UseKind.CONVOLUTION,), Storage.OUT_IN),
    }
    sites = [
        Site(
            name=name,
            shape=shapes[name],
            storage=storage,
            uses=tuple(Use(operator=f"{name}{number}", kind=kind) for number, kind in enumerate(uses)),
        )
        for name, (uses, storage) in kinds.items()
    ]
    spec = InputSpec(name="i", dtype=torch.int64, shape=(None, None))
    return onnx_model(folder, nodes, weights | {"one": np.array([1])}, sites, [spec], opset=opset)


@pytest.mark.parametrize(
    ("external", "small", "opset"), [(False, True, 21), (False, False, 21), (True, False, 21), (False, False, 13)]
)
def test_no_file_is_larger_than_counted_and_none_much_smaller(
    external: bool, small: bool, opset: int, tmp_path: Path
) -> None:
    model = network(tmp_path, opset=opset, small=small)
    backend = OnnxBackend(external_bytes=0) if external else OnnxBackend()
    symmetric = tuple(AffineFormat(bits=bits, group_size=64, symmetric=True) for bits in (3, 8))
    footprint = backend.footprint(model, (*ALL_WIDTHS, *symmetric))
    for seed in range(4):
        weights = quantized(model, random_choice(footprint, seed), seed=seed)
        out = tmp_path / f"out{seed}"
        out.mkdir()
        emission = backend.emit(model, weights, out)
        slack = counted_bytes(footprint, weights) - emission.bytes
        mixed = sum(len(weight.segments) > 1 for weight in weights)
        aligned = 64 * 40 if external else 0
        assert 0 <= slack <= LIBRARY_BYTES + SITE_BYTES * len(weights) + MIXED_BYTES * mixed + aligned


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    model = network(tmp_path)
    backend = OnnxBackend()
    weights = quantized(model, random_choice(backend.footprint(model, ALL_WIDTHS), 0))
    written: list[bytes] = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        written.append(backend.emit(model, weights, tmp_path / name).weights_file.read_bytes())
    assert written[0] == written[1]


def test_every_site_is_offered_a_float_format_and_nothing_that_it_cannot_hold(tmp_path: Path) -> None:
    model = network(tmp_path)
    odd = (AffineFormat(bits=3, group_size=48), AffineFormat(bits=3, group_size=64, outliers=2))
    footprint = OnnxBackend().footprint(model, (*ALL_WIDTHS, *odd))
    assert all(str(site.formats[-1]) == "fp16" for site in footprint.sites.values())
    assert not {*odd} & {*footprint.sites["u"].formats}
    assert odd[0].group_size == 48 and odd[1] not in footprint.sites["k"].formats
    assert footprint.sites["e"].segments == 4 and footprint.sites["k"].segments == 1
