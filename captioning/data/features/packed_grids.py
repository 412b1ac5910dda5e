"""Grids as bytes, without the zeros.

A packed grid holds the numbers that are not zero, in half precision, and then one byte for each of
them: its distance from the previous one (for the first, from position -1). A distance of more than
255 is bridged by storing zeros in between. After a ReLU most numbers are zero (92 % of VGG16's), so
that a packed grid takes a ninth of the space, without any loss.
"""

from typing import Final

import numpy as np
from jaxtyping import Float16

NUMBER: Final = np.dtype(np.float16)

_MAX_DISTANCE: Final = 255  # what one byte can hold


def pack(grid: Float16[np.ndarray, "locations channels"]) -> bytes:
    """Return the bytes that stand for a grid; the module's docstring describes them."""
    numbers = grid.reshape(-1)
    positions = np.flatnonzero(numbers)
    distances = np.diff(positions, prepend=-1)
    zeros = (distances - 1) // _MAX_DISTANCE  # stored before each number, to bridge the distance
    slots = np.cumsum(zeros + 1) - 1  # the index of each number among what is stored
    stored = np.zeros(int((zeros + 1).sum()), NUMBER)
    stored[slots] = numbers[positions]
    steps = np.full(len(stored), _MAX_DISTANCE, np.uint8)
    steps[slots] = distances - _MAX_DISTANCE * zeros
    return stored.tobytes() + steps.tobytes()


def unpack(packed: bytes, grid: Float16[np.ndarray, " numbers"]) -> None:
    """Write the packed numbers into a grid whose numbers are all zero.

    Raises:
        ValueError, IndexError: :func:`pack` does not return this for a grid of that size.
    """
    count, rest = divmod(len(packed), NUMBER.itemsize + 1)
    if rest:
        raise ValueError("a packed grid has one byte of distance for each number")
    steps = np.frombuffer(packed, np.uint8, offset=count * NUMBER.itemsize)
    grid[np.cumsum(steps, dtype=np.int64) - 1] = np.frombuffer(packed, NUMBER, count)
