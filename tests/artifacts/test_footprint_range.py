from __future__ import annotations

from itertools import product

import pytest
from allocation_problems import FORMATS, problem_of

from guidedq.artifacts.footprint import common_formats, largest_bytes, site_groups, smallest_bytes
from guidedq.errors import FormatError

ONES = [[1.0] * 3] * 3
OFFERED = [FORMATS[0:3], FORMATS[1:4], FORMATS[2:5]]


def test_no_mixture_of_rows_is_smaller_than_the_smallest_file() -> None:
    problem = problem_of([ONES], OFFERED[:1], segments=3, base_bytes=7)  # pyright: ignore[reportArgumentType]
    site = problem.footprint.sites["site0"]
    mixtures = [{index: choice.count(index) for index in choice} for choice in product(range(3), repeat=3)]
    assert problem.smallest == 7 + min(site.bytes(counts) for counts in mixtures)


def test_a_fused_group_is_counted_in_the_formats_that_all_members_offer() -> None:
    problem = problem_of([ONES] * 3, OFFERED, fused=[(0, 2)])  # pyright: ignore[reportArgumentType]
    footprint = problem.footprint
    assert common_formats(footprint, ("site0", "site2")) == FORMATS[2:3]
    fixed = footprint.sites["site0"].bytes({2: 3}) + footprint.sites["site2"].bytes({0: 3})
    alone = [footprint.sites["site1"].bytes({index: 3}) for index in range(3)]
    assert smallest_bytes(footprint, problem.rows, problem.graph.fused) == 100 + fixed + min(alone)
    assert largest_bytes(footprint, problem.rows, problem.graph.fused) == 100 + fixed + max(alone)


def test_fused_sites_without_a_common_format_are_named_with_what_they_offer() -> None:
    problem = problem_of([ONES] * 2, [FORMATS[0:3], FORMATS[3:6]])  # pyright: ignore[reportArgumentType]
    with pytest.raises(FormatError, match=r"site0, site1.*site0: affine\{bits=2.*site1: affine\{bits=4"):
        common_formats(problem.footprint, ("site0", "site1"))


def test_groups_stand_where_their_first_member_stands_without_absent_members() -> None:
    fused = [("d", "b"), ("c", "x"), ("y", "z")]
    assert site_groups(["a", "b", "c", "d"], fused) == [("a",), ("d", "b"), ("c",)]
