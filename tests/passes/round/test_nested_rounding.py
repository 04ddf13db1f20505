"""Nested rounding against GPTQ of one width, and against the other ways to nest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from guidedq.artifacts.guidance import QuadraticTerm, SiteGuidance
from guidedq.artifacts.packed_weight import pack_weight, unpack_weight
from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.errors import RecipeError
from guidedq.passes.round.gptq import GptqRounder
from guidedq.passes.round.nearest import NearestRounder
from guidedq.quant.formats import AffineFormat
from guidedq.quant.nested import NestedFormat
from guidedq.quant.refit import SHIFT_ZERO

WIDTHS = (3, 4, 5)
FORMAT = NestedFormat(widths=WIDTHS, precision=5)
ROWS, COLUMNS = 48, 128


def guidance(rows: int = ROWS, columns: int = COLUMNS, terms: int = 1) -> SiteGuidance:
    generator = torch.Generator().manual_seed(1)

    def term() -> QuadraticTerm:
        mixing = torch.eye(columns) + 0.05 * torch.randn(columns, columns, generator=generator)
        mixing *= torch.linspace(2.0, 0.1, columns)
        inputs = torch.randn(3 * columns, columns, generator=generator) @ mixing
        return QuadraticTerm(
            hessian=(inputs.t() @ inputs / len(inputs))[None],
            row_group=torch.zeros(rows, dtype=torch.int64),
            row_weight=0.5 + torch.rand(rows, generator=generator),
            row_weight_error=torch.zeros(rows),
        )

    return SiteGuidance(terms=tuple(term() for _ in range(terms)))


@pytest.fixture(scope="module")
def matrix() -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


def cost(mine: SiteGuidance, values: torch.Tensor, matrix: torch.Tensor) -> float:
    return float(mine.distortion(values - matrix).sum())


@pytest.mark.parametrize("terms", [1, 2])
def test_every_width_comes_near_a_weight_of_its_own_and_none_is_only_cut(matrix, terms):
    mine = guidance(terms=terms)
    nested = GptqRounder().nested(matrix, mine, FORMAT)
    alone = list(GptqRounder().round(matrix, mine, [AffineFormat(bits=bits) for bits in WIDTHS], seed=0))
    for bits, own in zip(WIDTHS, alone, strict=True):
        assert cost(mine, nested.at(bits).dequantize(), matrix) < 1.35 * cost(mine, own.dequantize(), matrix)
    cut = replace(
        nested,
        codes=alone[-1].codes,
        grid=alone[-1].grid,
        ratios=torch.ones(2).half(),
        shifts=torch.full_like(nested.shifts, SHIFT_ZERO),
    )
    assert cost(mine, nested.at(3).dequantize(), matrix) < 0.85 * cost(mine, cut.at(3).dequantize(), matrix)


def test_refits_lower_the_error_of_the_narrow_widths_and_leave_the_widest(matrix):
    mine = guidance()
    nested = GptqRounder().nested(matrix, mine, FORMAT)
    plain = replace(nested, ratios=torch.ones(2).half(), shifts=torch.full_like(nested.shifts, SHIFT_ZERO))
    for bits in (3, 4):
        refitted, before = (cost(mine, one.at(bits).dequantize(), matrix) for one in (nested, plain))
        assert refitted < before
    assert torch.equal(nested.at(5).dequantize(), plain.at(5).dequantize())


def test_short_last_groups_dead_inputs_and_constant_rows_do_no_harm():
    mine = guidance(4, 70)
    hessian = mine.terms[0].hessian.clone()
    hessian[:, 3], hessian[:, :, 3] = 0.0, 0.0
    mine = SiteGuidance(terms=(replace(mine.terms[0], hessian=hessian),))
    matrix = torch.randn(4, 70, generator=torch.Generator().manual_seed(0))
    matrix[1] = 0.0
    nested = GptqRounder().nested(matrix, mine, replace(FORMAT, group_size=64))
    for bits in WIDTHS:
        values = nested.at(bits).dequantize()
        assert bool(values.isfinite().all())
        assert float(values[1].abs().max()) < 0.01
    assert torch.equal(nested.codes, GptqRounder().nested(matrix, mine, FORMAT).codes)


def test_other_rounders_say_that_they_do_not_nest(matrix):
    with pytest.raises(RecipeError, match="gptq"):
        NearestRounder().nested(matrix, guidance(), FORMAT)


def test_a_weight_of_one_group_a_row_is_packed_as_it_was_rounded():
    matrix = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    nested = GptqRounder().nested(matrix, guidance(16, 64), FORMAT)
    blob = pack_weight(QuantizedWeight(name="w", shape=(16, 64), segments=(nested,)))
    (read,) = unpack_weight(blob, "w", (16, 64)).segments
    assert torch.equal(read.dequantize(), nested.dequantize())
