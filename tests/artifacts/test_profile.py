"""Profiles: what was measured comes back, what lies between is estimated, what is none is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidedq.artifacts.profile import Kernel, Profile, parse_profile, read_profile
from guidedq.errors import ProfileError

SIZES = st.integers(1, 4096)


def product(tokens: int, columns: int, rows: int, operator: str = "MatMul") -> Kernel:
    return Kernel(operator=operator, tokens=tokens, columns=columns, rows=rows)


def profile_of(*kernels: Kernel, rate: float = 1e9) -> Profile:
    """A machine that does so many multiplications a second, whatever the shape."""
    seconds = {kernel: kernel.work / rate for kernel in kernels}
    return Profile(runtime="onnxruntime 1.0", processor='A "fast" one', threads=2, seconds=seconds, models={"ab": 0.5})


@given(st.lists(st.tuples(SIZES, SIZES, SIZES), min_size=1, max_size=8, unique=True), st.tuples(SIZES, SIZES, SIZES))
def test_on_a_machine_of_one_rate_every_estimate_is_exact(shapes, asked):
    known = profile_of(*(product(*shape) for shape in shapes))
    assert known.estimate(product(*asked)) == pytest.approx(math.prod(asked) / 1e9)


def test_what_was_measured_is_taken_as_it_is():
    known = profile_of(product(1, 64, 64), product(1, 128, 128))
    exact = Profile(runtime="r", processor="p", threads=1, seconds={**known.seconds, product(2, 96, 96): 7.0})
    assert exact.estimate(product(2, 96, 96)) == 7.0


def test_an_estimate_lies_between_the_rates_of_its_neighbours():
    seconds = {product(1, 64, 64): 64 * 64 / 1e9, product(1, 256, 256): 256 * 256 / 4e9}
    between = Profile(runtime="r", processor="p", threads=1, seconds=seconds).estimate(product(1, 128, 128))
    assert 128 * 128 / 4e9 < between < 128 * 128 / 1e9


def test_a_block_size_that_was_not_measured_is_as_fast_as_the_next():
    def packed(bits, block):
        return product(4, 64, 64, f"MatMulNBits{{bits={bits} block-size={block}}}")

    seconds = {packed(4, 32): 1.0, packed(4, 128): 2.0, packed(8, 16): 3.0}
    known = Profile(runtime="r", processor="p", threads=1, seconds=seconds)
    assert known.estimate(packed(4, 16)) == pytest.approx(1.0)
    assert known.estimate(packed(4, 256)) == pytest.approx(2.0)
    with pytest.raises(ProfileError, match="bits=2"):
        known.estimate(packed(2, 32))


def test_a_profile_is_the_same_after_writing_and_reading(tmp_path):
    window = Kernel(operator="Conv", tokens=256, columns=144, rows=16, window=(16, 16, 3, 3, 1, 1, 1))
    packed = product(4, 32, 64, "MatMulNBits{bits=4 block-size=32 accuracy-level=4}")
    known = profile_of(window, packed, product(4, 32, 64), rate=8.192e9)
    known.write(tmp_path / "new" / "machine.toml")
    again = read_profile(tmp_path / "new" / "machine.toml")
    assert again.seconds.keys() == known.seconds.keys()
    assert again.toml() == known.toml()
    assert (again.processor, again.threads, again.models) == (known.processor, 2, {"ab": 0.5})


def test_an_operator_that_was_not_measured_is_named_with_those_that_were():
    with pytest.raises(ProfileError, match=r"no Conv\. It has: MatMul"):
        profile_of(product(1, 2, 3)).estimate(product(1, 2, 3, "Conv"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("version = 1", "version = 2"), "Install a newer one"),
        (("threads = 2", "threads = 0"), "at least 1"),
        (("1x64x64", "1x64"), "no profile"),
        (("1x64x64", "1x0x64"), "no profile"),
        (("= 4.1", "= -4.1"), "microseconds above 0"),
        (("= 4.1", "= 'much'"), "microseconds above 0"),
        (("runtime", "runtimes"), "no profile"),
        (("[microseconds", "[microseconds"[1:]), "no profile"),
    ],
)
def test_what_is_no_profile_is_refused_with_the_reason(change, said):
    text = profile_of(product(1, 64, 64)).toml()
    assert change[0] in text
    with pytest.raises(ProfileError, match=said):
        parse_profile(text.replace(*change, 1))


def test_a_file_that_is_not_there_says_how_to_make_one(tmp_path):
    with pytest.raises(ProfileError, match="guidedq profile"):
        read_profile(tmp_path / "none.toml")
