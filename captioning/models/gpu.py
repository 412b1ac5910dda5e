"""What :mod:`captioning.models.native` has in C for a CPU, in Triton for NVIDIA's GPUs.

At each word, attention in torch's own kernels writes a tensor of captions x locations x units to
the GPU's memory and reads it back, and an LSTM cell is a dozen launches. Here attention is one
launch forward and two backward, a cell one each way, and nothing leaves the chip but the results.

Triton compiles at the first call; its interpreter (``TRITON_INTERPRET=1``) runs the same functions
on a CPU, which is how they are tested without a GPU.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from captioning.models import triton_functions as functions
from captioning.models.native import MOST_ADDENDS, Kernels, Tensors

TILE = 16
"""Columns that are read together: in bfloat16, of each location one sector of the GPU's memory."""


class TritonKernels(Kernels):
    """The functions of :mod:`captioning.models.triton_functions`, on tensors of the GPU's."""

    def fill_attention(self, alpha: Tensor, context: Tensor, *given: Tensor, captions: int) -> None:
        exp_keys, grid, *_ = given
        _, locations, units = exp_keys.shape
        _launch(
            functions.attend, (len(alpha),),
            alpha, context, *given, captions, locations, units, grid.shape[2],
            LOCATIONS=triton.next_power_of_2(locations), TILE=TILE, num_warps=8,
        )  # fmt: skip

    def fill_gradients(
        self, by_keys: Tensor, by_query: Tensor, by_weight: Tensor, *given: Tensor, captions: int
    ) -> None:
        by_alpha, by_context, alpha, exp_keys, grid, exp_query, place = given
        (images, locations, units), rows = exp_keys.shape, len(exp_query)
        across = triton.next_power_of_2(locations)
        by_scores = torch.empty_like(alpha)
        _launch(
            functions.through_softmax, (rows,),
            by_scores, by_alpha, by_context, alpha, grid, place,
            captions, locations, grid.shape[2],
            LOCATIONS=across, TILE=TILE, num_warps=8,
        )  # fmt: skip
        _launch(
            functions.slopes, (images, triton.cdiv(units, TILE)),
            by_keys, by_query, by_weight, by_scores, exp_keys, exp_query, place,
            captions, rows, locations, units,
            ROWS=triton.next_power_of_2(images * captions), LOCATIONS=across, TILE=TILE,
            num_warps=8,
        )  # fmt: skip

    def fill_cell(
        self, hidden: Tensor, cell: Tensor, active: Tensor, before: Tensor, addends: Tensors
    ) -> None:
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


def _tile(cell: Tensor) -> int:
    return int(min(256, triton.next_power_of_2(cell.shape[1])))


def _tiles(cell: Tensor) -> tuple[int, int]:
    return len(cell), triton.cdiv(cell.shape[1], _tile(cell))


def _launch(function: Any, programs: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    if all(programs):
        function[programs](*arguments, **constants)
