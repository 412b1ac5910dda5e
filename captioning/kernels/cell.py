"""The pointwise part of an LSTM cell by compiled kernels, in one pass in each direction.

In PyTorch it is a dozen small operations at every word, which take a tenth of a training step.
"""

from typing import Any

import torch
from torch import Tensor

from captioning.kernels.deferred import first_derivative_only
from captioning.kernels.library import Kernels


class LSTMCell(torch.autograd.Function):
    """The op :func:`captioning.kernels.reference.lstm_cell`; all addends have the same gradient."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, previous: Tensor, *addends: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden, cell, active = kernels.cell(previous, *addends)
        ctx.kernels, ctx.dtype, ctx.addends = kernels, addends[0].dtype, len(addends)
        ctx.save_for_backward(active, previous, cell)
        return hidden, cell

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad_hidden: Tensor, grad_cell: Tensor) -> tuple[Tensor | None, ...]:
        grad_gates, grad_previous = ctx.kernels.cell_backward(
            grad_hidden, grad_cell, *ctx.saved_tensors, ctx.dtype
        )
        return None, grad_previous, *([grad_gates] * ctx.addends)
