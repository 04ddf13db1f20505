"""A convolution is the product of its weight's matrix and the patches, whatever its kind and geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from guidedq.ir.graph import Site, Storage, Use, UseKind
from guidedq.ir.onnx_interpreter import find_weighted, parse_model
from guidedq.ir.patches import convolution_patches

GEOMETRIES: list[tuple[str, Mapping[str, Any], Sequence[int], Sequence[int]]] = [
    ("Conv", {"group": 2, "strides": [2], "dilations": [2], "pads": [1, 1]}, [2, 4, 9], [6, 2, 3]),
    ("Conv", {"strides": [2, 1], "auto_pad": "SAME_UPPER"}, [2, 3, 6, 5], [4, 3, 3, 2]),
    ("Conv", {"pads": [1, 1, 0, 1, 1, 0]}, [2, 2, 4, 5, 3], [3, 2, 3, 3, 1]),
    ("ConvTranspose", {"strides": [2], "pads": [1, 1], "output_padding": [1]}, [2, 3, 5], [3, 4, 3]),
    ("ConvTranspose", {"group": 2, "strides": [2, 3], "dilations": [2, 1]}, [2, 4, 3, 4], [4, 3, 2, 3]),
    ("ConvTranspose", {"strides": [2, 2], "auto_pad": "SAME_LOWER"}, [2, 3, 4, 4], [3, 2, 3, 3]),
    ("ConvTranspose", {"group": 3, "output_shape": [5, 6, 7]}, [2, 3, 4, 4, 6], [3, 1, 2, 3, 2]),
]


@pytest.mark.parametrize(("operator", "settings", "image", "shape"), GEOMETRIES)
def test_the_matrix_times_the_patches_is_what_the_convolution_gives(operator, settings, image, shape):
    torch.manual_seed(0)
    weight, values = torch.randn(*shape), torch.randn(*image)
    made, transposed = helper.make_node(operator, ["x", "w"], ["y"], **settings), operator == "ConvTranspose"
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, image)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"y{axis}" for axis in range(len(image))])
    held = helper.make_tensor("w", TensorProto.FLOAT, shape, weight.flatten().tolist())
    model = helper.make_model(helper.make_graph([made], "tested", [given], [result], [held]))
    (entry,) = find_weighted(parse_model(model))
    site = Site(name="w", shape=entry.shape, uses=(Use(operator="y", kind=UseKind.CONVOLUTION),),
                storage=entry.storage, input_groups=entry.groups)  # fmt: skip
    assert (site.storage is Storage.IN_OUT_KERNEL) == transposed
    matrix = site.matrix(weight)
    assert torch.equal(site.stored(matrix), weight)
    module = entry.module(nn.Parameter(weight, requires_grad=False))
    operand = entry.operand(values, image[0])
    patches = convolution_patches(module, operand, site)
    rows = matrix.unflatten(0, (site.input_groups, -1))
    product = torch.einsum("stgc,goc->sgot", patches, rows).flatten(1, 2)
    torch.testing.assert_close(product, module(operand).flatten(2), rtol=1e-5, atol=1e-5)
