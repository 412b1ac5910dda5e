"""Grids as bytes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from captioning.data.features.packed_grids import pack, unpack


@given(
    grid=arrays(
        np.float16,
        st.tuples(st.integers(1, 5), st.integers(1, 700)),
        elements=st.floats(width=16, allow_nan=True),
        fill=st.just(0.0),
    )
)
def test_what_is_packed_comes_back(grid: np.ndarray) -> None:
    packed = pack(grid)
    back = np.zeros(grid.size, np.float16)
    unpack(packed, back)
    np.testing.assert_array_equal(back.reshape(grid.shape), grid)
    assert len(packed) <= 3 * (np.count_nonzero(grid) + grid.size // 255)


def test_a_row_is_as_the_modules_documentation_has_it() -> None:
    grid = np.zeros((2, 300), np.float16)
    grid[0, 1], grid[1, 4] = 1.0, -2.0  # the numbers 1 and 304 of 600
    numbers = np.array([1.0, 0.0, -2.0], "<f2").tobytes()
    assert pack(grid) == numbers + bytes([2, 255, 48])
    assert pack(np.zeros((2, 300), np.float16)) == b""
