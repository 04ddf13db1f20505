"""The footprint once the curves are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from allocation_problems import CODED, FORMATS, Problem, problem_of

from guidedq.driver.evidence import measured_footprint
from guidedq.quant.formats import EntropyFormat

OFFERED = (CODED[0], FORMATS[3], CODED[1], FORMATS[6])


@pytest.fixture
def problem() -> Problem:
    made = problem_of([[[4.0, 3.0, 2.0, 1.0]] * 5] * 2, [OFFERED] * 2)  # pyright: ignore[reportArgumentType]
    sizes = {"site0": [20.25, 0.0, 33.0, 0.0], "site1": [1.0, 0.0, 64.001, 0.0]}
    curves = {name: replace(curve, entropy_bytes=torch.tensor(sizes[name])) for name, curve in made.curves.items()}
    return replace(made, curves=curves)


def test_entropy_formats_take_what_was_measured_rounded_up_and_others_what_is_known(problem: Problem) -> None:
    found = measured_footprint(problem.footprint, problem.curves)
    fixed = [OFFERED[number].row_bytes(64) for number in (1, 3)]
    scale = 1
    assert found.sites["site0"].row_bytes == (21 + scale, fixed[0], 33 + scale, fixed[1])
    assert found.sites["site1"].row_bytes == (1 + scale, fixed[0], 65 + scale, fixed[1])
    assert found.sites["site0"].code_bytes == (21, 0, 33, 0)


def test_nothing_but_the_bytes_of_rows_is_changed(problem: Problem) -> None:
    found = measured_footprint(problem.footprint, problem.curves)
    assert found.base_bytes == problem.footprint.base_bytes
    for name, site in found.sites.items():
        before = problem.footprint.sites[name]
        assert replace(site, row_bytes=before.row_bytes, code_bytes=before.code_bytes) == before


def test_without_entropy_formats_the_footprint_is_as_it_was() -> None:
    fixed = problem_of([[[2.0, 1.0]] * 5], [FORMATS[2:4]])  # pyright: ignore[reportArgumentType]
    assert measured_footprint(fixed.footprint, fixed.curves) == fixed.footprint
    assert not any(isinstance(format, EntropyFormat) for format in FORMATS)
