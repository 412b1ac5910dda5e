"""What :mod:`captioning.kernels.native` has in C for a CPU, in Triton for NVIDIA's GPUs.

At each word, attention in torch's own kernels writes a tensor of captions x locations x units to
the GPU's memory and reads it back, and an LSTM cell is a dozen launches. Here attention is two
launches each way, a cell one, and what is written between two launches is a number a location.

Triton compiles at the first call; its interpreter (``TRITON_INTERPRET=1``) runs the same functions
on a CPU, which is how they are tested without a GPU.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from captioning.kernels.native import MOST_ADDENDS, Kernels, Tensors
from captioning.kernels.triton_backend import functions as functions

SOME, WIDE = 16, 128
"""Locations of a program, and columns that it reads together."""
NARROW = 32
"""Columns of a program that reads all locations."""


class TritonKernels(Kernels):
    """The functions of :mod:`captioning.kernels.triton_backend.functions` on a GPU's tensors."""

    def fill_attention(self, alpha: Tensor, context: Tensor, *given: Tensor, captions: int) -> None:
        exp_keys, grid, exp_query, weight, place = given
        (rows, locations), channels = alpha.shape, grid.shape[2]
        scores, across = torch.empty_like(alpha), triton.next_power_of_2(locations)
        _launch(
            functions.score, (rows, triton.cdiv(locations, SOME)),
            scores, exp_keys, exp_query, weight, place,
            captions, locations, exp_keys.shape[2],
            SOME=SOME, TILE=WIDE, num_warps=2,
        )  # fmt: skip
        _launch(
            functions.mix, (rows, triton.cdiv(channels, NARROW)),
            alpha, context, scores, grid, place,
            captions, locations, channels,
            LOCATIONS=across, TILE=NARROW, num_warps=_warps(across),
        )  # fmt: skip

    def fill_gradients(
        self, by_keys: Tensor, by_query: Tensor, by_weight: Tensor, *given: Tensor, captions: int
    ) -> None:
        by_alpha, by_context, alpha, exp_keys, grid, exp_query, place = given
        (images, locations, units), rows = exp_keys.shape, len(exp_query)
        by_weights, across = torch.empty_like(alpha), triton.next_power_of_2(locations)
        _launch(
            functions.through_context, (rows, triton.cdiv(locations, SOME)),
            by_weights, by_alpha, by_context, grid, place,
            captions, locations, grid.shape[2],
            SOME=SOME, TILE=WIDE, num_warps=2,
        )  # fmt: skip
        _launch(
            functions.slopes, (images, triton.cdiv(units, NARROW)),
            by_keys, by_query, by_weight, by_weights, alpha, exp_keys, exp_query, place,
            rows, locations, units,
            CAPTIONS=captions, ROWS=triton.next_power_of_2(images * captions),
            LOCATIONS=across, TILE=NARROW, num_warps=_warps(across),
        )  # fmt: skip

    def fill_cell(
        self, hidden: Tensor, cell: Tensor, active: Tensor | None, before: Tensor, addends: Tensors
    ) -> None:
        if active is None:
            active = before.new_empty(len(before), 4 * before.shape[1])
        three = (*addends, *[addends[0]] * (MOST_ADDENDS - len(addends)))
        _launch(
            functions.lstm_cell, _tiles(before),
            hidden, cell, active, before, *three, *(each.stride(0) for each in three),
            before.shape[1], ADDENDS=len(addends), TILE=_tile(before),
        )  # fmt: skip

    def fill_cell_gradients(self, by_gates: Tensor, by_before: Tensor, *given: Tensor) -> None:
        _launch(
            functions.lstm_cell_gradients, _tiles(by_before),
            by_gates, by_before, *given, by_before.shape[1], TILE=_tile(by_before),
        )  # fmt: skip


def _warps(locations: int) -> int:
    """So many that a thread has 64 numbers of a tile: twice as many would not stay in registers."""
    return min(max(locations * NARROW // (64 * 32), 1), 32)


def _tile(cell: Tensor) -> int:
    return int(min(256, triton.next_power_of_2(cell.shape[1])))


def _tiles(cell: Tensor) -> tuple[int, int]:
    return len(cell), triton.cdiv(cell.shape[1], _tile(cell))


def _launch(function: Any, programs: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    if all(programs):
        function[programs](*arguments, **constants)
