"""Small models for the tests of the ONNX backend, and the slow obvious twin of what it writes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from guidedq.artifacts.footprint import Footprint
from guidedq.artifacts.quantized_weight import (
    EntropySegment,
    FloatSegment,
    QuantizedWeight,
    Segment,
    affine_segment,
    float_weight,
)
from guidedq.ir.graph import Graph, Site, operator_graph
from guidedq.ir.model import InputSpec, Model, Objective
from guidedq.ir.program import TorchProgram
from guidedq.quant.exponents import ONE, nearest_exponents, scales_of
from guidedq.quant.formats import ENTROPY_ZERO, AffineFormat, EntropyFormat, FloatFormat, Format
from guidedq.quant.grid import Grid, quantize_nearest


class Weights(nn.Module):
    """Holds the weights of an ONNX model, so that a Model can be made of it; it does not run."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, values in weights.items():
            self.register_buffer(name, values)


def onnx_model(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    sites: Sequence[Site],
    inputs: Sequence[InputSpec],
    *,
    opset: int = 21,
    others: Sequence[onnx.TensorProto] = (),
    output_rank: int = 3,
    element: int = TensorProto.FLOAT,
) -> Model:
    """Write an ONNX file of these nodes, and lift it by hand."""
    kinds = {torch.int64: TensorProto.INT64, torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}
    given = [
        helper.make_tensor_value_info(
            spec.name, kinds[spec.dtype], [size or f"d{axis}" for axis, size in enumerate(spec.shape)]
        )
        for spec in inputs
    ]
    made = [helper.make_tensor_value_info("y", element, [f"y{axis}" for axis in range(output_rank)])]
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(list(nodes), "tested", given, made, [*tensors, *others])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    path = folder / "source.onnx"
    onnx.save(proto, path)
    module = Weights({site.name: torch.from_numpy(weights[site.name]) for site in sites})
    return Model(
        name="tested",
        path=path,
        source="onnx",
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        graph=Graph(operators=operator_graph([], []), sites=tuple(sites)),
        program=TorchProgram(module=module),
        objective=Objective.VALUES,
        inputs=tuple(inputs),
        parameters=sum(site.parameters for site in sites),
    )


def quantized(model: Model, choose: Callable[[Site], Sequence[Format]], *, seed: int = 0) -> list[QuantizedWeight]:
    """Quantize every site to random grids, row by row in the formats that `choose` gives."""
    generator = torch.Generator().manual_seed(seed)
    weights: list[QuantizedWeight] = []
    for site in model.graph.quantizable:
        matrix, formats = model.matrix(site), list(choose(site))
        segments = [
            segment(matrix, format, torch.tensor([i for i, f in enumerate(formats) if f == format]), generator)
            for format in dict.fromkeys(formats)
        ]
        weights.append(QuantizedWeight(name=site.name, shape=(site.rows, site.columns), segments=tuple(segments)))
    return weights


def segment(matrix: Tensor, format: Format, rows: Tensor, generator: torch.Generator) -> Segment:
    """Some rows of a matrix on random grids: any zero point, scales that clip now and then."""
    part = matrix[rows]
    if isinstance(format, EntropyFormat):
        exponents = nearest_exponents(format.step * part.std() * (0.5 + torch.rand(len(rows), generator=generator)))
        codes = (part / scales_of(exponents)[:, None]).round() + ENTROPY_ZERO
        return EntropySegment(
            format=format,
            rows=rows,
            codes=codes.clamp(0, 255).to(torch.uint8),
            row_exponents=exponents,
            column_exponents=torch.full((matrix.shape[1],), ONE, dtype=torch.uint8),
        )
    if isinstance(format, FloatFormat):
        whole = float_weight("any", part, format).segments[0]
        assert isinstance(whole, FloatSegment)
        return FloatSegment(format=format, rows=rows, values=whole.values)
    shape = (len(rows), format.groups(matrix.shape[1]))
    spread = part.abs().max() / 2 ** (format.bits - 1)
    scales = (spread * (0.5 + torch.rand(shape, generator=generator))).half()
    middle = torch.full(shape, 2 ** (format.bits - 1), dtype=torch.uint8)
    free = torch.randint(0, 2**format.bits, shape, generator=generator, dtype=torch.uint8)
    grid = Grid(scales=scales, zero_points=middle if format.symmetric else free)
    return affine_segment(format, rows, quantize_nearest(part, grid, format), grid, None, None)


def reference(model: Model, weights: Sequence[QuantizedWeight], feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """The user's own graph with the dequantized weights, run by ONNX Runtime."""
    proto = onnx.load_model(str(model.path))
    by_name = {weight.name: weight for weight in weights}
    for tensor in proto.graph.initializer:
        if tensor.name in by_name:
            stored = model.graph.site(tensor.name).stored(by_name[tensor.name].dequantize()).numpy()
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.CopyFrom(numpy_helper.from_array(stored.astype(dtype), tensor.name))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))[0]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest error relative to the largest value."""
    return float(np.abs(found.astype(np.float64) - expected).max() / max(np.abs(expected).max(), 1e-30))


def counted_bytes(footprint: Footprint, weights: Sequence[QuantizedWeight]) -> int:
    """What the footprint says that a file of these weights takes."""
    total = footprint.base_bytes
    for weight in weights:
        site = footprint.sites[weight.name]
        rows = {site.formats.index(segment.format): len(segment.rows) for segment in weight.segments}
        total += site.bytes(rows)
    return total


def random_choice(footprint: Footprint, seed: int) -> Callable[[Site], list[Format]]:
    """Random formats for every row, among what the footprint offers."""
    generator = random.Random(seed)

    def choose(site: Site) -> list[Format]:
        offered = footprint.sites[site.name]
        few = generator.sample(offered.formats, min(len(offered.formats), generator.randint(1, offered.segments)))
        return [generator.choice(few) for _ in range(site.rows)]

    return choose


ALL_WIDTHS = (
    *(AffineFormat(bits=bits, group_size=64) for bits in range(2, 9)),
    *(AffineFormat(bits=bits, group_size=group) for bits, group in ((2, 32), (3, 128), (4, 32), (5, 128))),
)
