"""Launches the kernels of :mod:`captioning.kernels.triton.functions` on a GPU's tensors.

In PyTorch's own kernels, attention writes a tensor of captions x locations x units to the GPU's
memory at each word and reads it back, and an LSTM cell takes a dozen launches. Here attention takes
two launches in each direction and a cell takes one, and between the two launches of attention only
one number per caption and location is written.

Triton compiles at the first call. Its interpreter (``TRITON_INTERPRET=1``) runs the same functions
on a CPU, which is how they are tested without a GPU.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from captioning.kernels.library import MAX_ADDENDS, CompilationError, Kernels
from captioning.kernels.triton import functions

BLOCK_LOCATIONS = 16
"""Number of locations in a block, in functions with one program per block of locations."""
BLOCK_WIDE = 128
"""Number of columns that such a program reads at a time."""
BLOCK_NARROW = 32
"""Number of columns in a block, in functions whose programs read all locations."""


def load_triton_kernels() -> "TritonKernels":
    """Load the kernels, and compile and run one of them as a test.

    Raises:
        CompilationError: Triton does not work on this machine.
    """
    kernels = TritonKernels()
    try:
        kernels.cell(torch.zeros(1, 1, device="cuda"), torch.zeros(1, 4, device="cuda"))
    except Exception as error:  # many kinds: no C compiler for the launcher, an old driver, ...
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CompilationError(f"Triton failed ({reason})") from error
    return kernels


class TritonKernels(Kernels):
    """The Triton functions as :class:`~captioning.kernels.library.Kernels`."""

    language = "triton"

    def fill_attention(
        self, alpha: Tensor, context: Tensor, *inputs: Tensor, captions: int
    ) -> None:
        exp_keys, grid, exp_query, weight, row_index = inputs
        (rows, locations), channels = alpha.shape, grid.shape[2]
        scores, all_locations = torch.empty_like(alpha), triton.next_power_of_2(locations)
        _launch(
            functions.score, (rows, triton.cdiv(locations, BLOCK_LOCATIONS)),
            scores, exp_keys, exp_query, weight, row_index,
            captions, locations, exp_keys.shape[2],
            BLOCK_LOCATIONS=BLOCK_LOCATIONS, BLOCK=BLOCK_WIDE, num_warps=2,
        )  # fmt: skip
        _launch(
            functions.mix, (rows, triton.cdiv(channels, BLOCK_NARROW)),
            alpha, context, scores, grid, row_index,
            captions, locations, channels,
            LOCATIONS=all_locations, BLOCK=BLOCK_NARROW, num_warps=_warps(all_locations),
        )  # fmt: skip

    def fill_attention_backward(
        self,
        grad_keys: Tensor,
        grad_query: Tensor,
        grad_weight: Tensor,
        *inputs: Tensor,
        captions: int,
    ) -> None:
        grad_alpha, grad_context, alpha, exp_keys, grid, exp_query, weight, row_index = inputs
        (images, locations, units), rows = exp_keys.shape, len(exp_query)
        grad_weights = torch.empty_like(alpha)
        all_locations = triton.next_power_of_2(locations)
        _launch(
            functions.context_backward, (rows, triton.cdiv(locations, BLOCK_LOCATIONS)),
            grad_weights, grad_alpha, grad_context, grid, row_index,
            captions, locations, grid.shape[2],
            BLOCK_LOCATIONS=BLOCK_LOCATIONS, BLOCK=BLOCK_WIDE, num_warps=2,
        )  # fmt: skip
        _launch(
            functions.tanh_backward, (images, triton.cdiv(units, BLOCK_NARROW)),
            grad_keys, grad_query, grad_weight, grad_weights, alpha, exp_keys, exp_query, weight,
            row_index, rows, locations, units,
            CAPTIONS=captions, ROWS=triton.next_power_of_2(images * captions),
            LOCATIONS=all_locations, BLOCK=BLOCK_NARROW, num_warps=_warps(all_locations),
        )  # fmt: skip

    def fill_cell(
        self,
        hidden: Tensor,
        cell: Tensor,
        active: Tensor | None,
        previous: Tensor,
        addends: tuple[Tensor, ...],
    ) -> None:
        if active is None:
            active = previous.new_empty(len(previous), 4 * previous.shape[1])
        three = (*addends, *[addends[0]] * (MAX_ADDENDS - len(addends)))
        _launch(
            functions.lstm_cell, _programs(previous),
            hidden, cell, active, previous, *three, *(each.stride(0) for each in three),
            previous.shape[1], ADDENDS=len(addends), BLOCK=_block(previous),
        )  # fmt: skip

    def fill_cell_backward(
        self, grad_gates: Tensor, grad_previous: Tensor, *inputs: Tensor
    ) -> None:
        _launch(
            functions.lstm_cell_backward, _programs(grad_previous),
            grad_gates, grad_previous, *inputs, grad_previous.shape[1],
            BLOCK=_block(grad_previous),
        )  # fmt: skip


def _warps(locations: int) -> int:
    """The number of warps with which a thread holds 64 elements of a block; 128 would spill."""
    return min(max(locations * BLOCK_NARROW // (64 * 32), 1), 32)


def _block(cell: Tensor) -> int:
    return int(min(256, triton.next_power_of_2(cell.shape[1])))


def _programs(cell: Tensor) -> tuple[int, int]:
    return len(cell), triton.cdiv(cell.shape[1], _block(cell))


def _launch(function: Any, programs: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    if all(programs):
        function[programs](*arguments, **constants)
