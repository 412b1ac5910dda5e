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
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from captioning.models import triton_functions as functions
from captioning.models.native import MOST_ADDENDS, Kernels

TILE = 16
"""Columns that are read together: in bfloat16, of each location one sector of the GPU's memory."""


class TritonKernels(Kernels):
    """The functions, on tensors in the GPU's memory."""

    def attend(
        self,
        exp_keys: Float[Tensor, "images locations units"],
        grid: Float[Tensor, "images locations channels"],
        exp_query: Float32[Tensor, "rows units"],
        weight: Float32[Tensor, " units"],
        place: Int64[Tensor, " rows"],
        captions: int,
    ) -> tuple[Float32[Tensor, "rows locations"], Float32[Tensor, "rows channels"]]:
        rows, (_, locations, units), channels = len(exp_query), exp_keys.shape, grid.shape[2]
        alpha = exp_query.new_empty(rows, locations)
        context = exp_query.new_empty(rows, channels)
        given = (each.contiguous() for each in (exp_keys, grid, exp_query, weight, place))
        _launch(
            functions.attend, (rows,),
            alpha, context, *given, captions, locations, units, channels,
            LOCATIONS=triton.next_power_of_2(locations), TILE=TILE, num_warps=8,
        )  # fmt: skip
        return alpha, context

    def gradients(
        self,
        by_keys: Float32[Tensor, "images locations units"],
        by_alpha: Float32[Tensor, "rows locations"],
        by_context: Float32[Tensor, "rows channels"],
        alpha: Float32[Tensor, "rows locations"],
        exp_keys: Float[Tensor, "images locations units"],
        grid: Float[Tensor, "images locations channels"],
        exp_query: Float32[Tensor, "rows units"],
        place: Int64[Tensor, " rows"],
        captions: int,
    ) -> tuple[Float32[Tensor, "rows units"], Float32[Tensor, " units"]]:
        (images, locations, units), rows = exp_keys.shape, len(exp_query)
        across = triton.next_power_of_2(locations)
        by_scores, by_query = torch.empty_like(alpha), torch.empty_like(exp_query)
        by_weight = exp_query.new_empty(images, units)
        exp_keys, grid, exp_query = exp_keys.contiguous(), grid.contiguous(), exp_query.contiguous()
        _launch(
            functions.through_softmax, (rows,),
            by_scores, by_alpha.contiguous(), by_context.contiguous(), alpha, grid, place,
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
        return by_query, by_weight.sum(0)

    def cell(
        self, before: Float32[Tensor, "rows units"], *addends: Float[Tensor, "rows gates"]
    ) -> tuple[
        Float32[Tensor, "rows units"], Float32[Tensor, "rows units"], Float32[Tensor, "rows gates"]
    ]:
        rows, units = before.shape
        hidden, cell = torch.empty_like(before), torch.empty_like(before)
        active = before.new_empty(rows, 4 * units)
        # Each row of an addend lies in one piece, as in a slice of a larger product's columns.
        addends = tuple(each if each.stride(1) == 1 else each.contiguous() for each in addends)
        three = (*addends, *[addends[0]] * (MOST_ADDENDS - len(addends)))
        tile = min(256, triton.next_power_of_2(units))
        _launch(
            functions.lstm_cell, (rows, triton.cdiv(units, tile)),
            hidden, cell, active, before.contiguous(), *three,
            *(each.stride(0) for each in three), units, ADDENDS=len(addends), TILE=tile,
        )  # fmt: skip
        return hidden, cell, active

    def cell_gradients(
        self,
        by_hidden: Float32[Tensor, "rows units"],
        by_cell: Float32[Tensor, "rows units"],
        active: Float32[Tensor, "rows gates"],
        before: Float32[Tensor, "rows units"],
        cell: Float32[Tensor, "rows units"],
        dtype: torch.dtype,
    ) -> tuple[Float[Tensor, "rows gates"], Float32[Tensor, "rows units"]]:
        rows, units = cell.shape
        by_gates, by_before = torch.empty_like(active, dtype=dtype), torch.empty_like(cell)
        given = [tensor.contiguous() for tensor in (by_hidden, by_cell, active, before, cell)]
        tile = min(256, triton.next_power_of_2(units))
        _launch(
            functions.lstm_cell_gradients, (rows, triton.cdiv(units, tile)),
            by_gates, by_before, *given, units, TILE=tile,
        )  # fmt: skip
        return by_gates, by_before


def _launch(function: Any, programs: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    if all(programs):
        function[programs](*arguments, **constants)
