import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidedq.backends.onnx.layout import Stream, block_of, container_bytes
from guidedq.quant.formats import AffineFormat

CONTAINERS = [(bits, container) for container in (2, 4, 8) for bits in range(1, container + 1)]


@st.composite
def streams(draw: st.DrawFn) -> tuple[Stream, np.ndarray, np.ndarray]:
    bits, container = draw(st.sampled_from(CONTAINERS))
    stream = Stream(
        bits=bits, container=container, columns=draw(st.integers(1, 70)), zero_points=draw(st.integers(0, 5))
    )
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = draw(st.integers(1, 4))
    codes = generator.integers(0, 2**bits, (rows, stream.columns)).astype(np.uint8)
    return stream, codes, generator.integers(0, 2**bits, (rows, stream.zero_points)).astype(np.uint8)


def slot_by_slot(values: np.ndarray, container: int) -> np.ndarray:
    """The obvious twin: codes one after another, lowest bits first, rows padded to a byte."""
    packed = np.zeros((len(values), -(-values.shape[1] * container // 8)), dtype=np.uint8)
    for row, line in enumerate(values):
        for column, code in enumerate(line):
            packed[row, column * container // 8] |= np.uint8(code) << (column * container % 8)
    return packed


@given(streams())
def test_unpacking_a_packed_stream_gives_the_container_bytes_of_codes_and_zero_points(
    case: tuple[Stream, np.ndarray, np.ndarray],
) -> None:
    stream, codes, zero_points = case
    expected = np.concatenate(
        [slot_by_slot(codes, stream.container), slot_by_slot(zero_points, stream.container)], axis=1
    )
    np.testing.assert_array_equal(stream.unpack(stream.pack(codes, zero_points), len(codes)), expected)


@given(streams())
def test_a_stream_takes_its_true_width_padded_once_a_part(case: tuple[Stream, np.ndarray, np.ndarray]) -> None:
    stream, codes, zero_points = case
    packed = stream.pack(codes, zero_points)
    slots = len(codes) * stream.width * 8 // stream.container
    assert [len(part) for part in packed] == [stream.part_bytes(part, len(codes)) for part in stream.parts]
    assert slots * stream.bits / 8 <= sum(map(len, packed)) < slots * stream.bits / 8 + len(packed)


@pytest.mark.parametrize("container", [2, 4, 8])
def test_container_bytes_hold_codes_lowest_bits_first(container: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**container, (3, 13)).astype(np.uint8)
    np.testing.assert_array_equal(container_bytes(values, container), slot_by_slot(values, container))


@pytest.mark.parametrize(
    ("format", "columns", "block"),
    [
        (AffineFormat(bits=3, group_size=64), 172, 64),
        (AffineFormat(bits=3, group_size=64), 40, 64),
        (AffineFormat(bits=3, group_size=64), 20, 32),
        (AffineFormat(bits=3, group_size=0), 172, 256),
        (AffineFormat(bits=3, group_size=0), 5, 16),
        (AffineFormat(bits=3, group_size=0), 257, None),
        (AffineFormat(bits=3, group_size=48), 172, None),
        (AffineFormat(bits=3, group_size=8), 172, None),
        (AffineFormat(bits=3, group_size=512), 1024, None),
        (AffineFormat(bits=3, group_size=64, outliers=1), 172, None),
    ],
)
def test_only_blocks_that_the_runtime_has_are_offered(format: AffineFormat, columns: int, block: int | None) -> None:
    assert block_of(format, columns) == block
