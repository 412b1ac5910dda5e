"""The pointwise part of an LSTM cell, in one pass each way where it is compiled.

Its dozen of small operations at every word would otherwise cost a tenth of a training step.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from captioning.kernels import native


def lstm_cell(
    cell: Float[Tensor, "rows units"], *addends: Float[Tensor, "rows 4*units"]
) -> dict[str, Tensor]:
    """One step of an LSTM, from the products that make up its gates.

    Args:
        cell: before the step, in single precision.
        addends: what adds up to input, forget, cell and output gate, in this order.

    Returns:
        ``hidden`` and ``cell`` after the step, in single precision.
    """
    compiled = native.kernels_for(*addends) if len(addends) <= native.MOST_ADDENDS else None
    if compiled is not None:
        if torch.is_grad_enabled():
            hidden, cell = _Cell.apply(compiled, cell, *addends)
        else:
            hidden, cell, _ = compiled.cell(cell, *addends, for_gradients=False)
        return {"hidden": hidden, "cell": cell}
    i, f, g, o = sum(addends[1:], start=addends[0]).float().chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return {"hidden": o.sigmoid() * cell.tanh(), "cell": cell}


class _Cell(torch.autograd.Function):
    """The compiled one; all addends have the same gradient."""

    @staticmethod
    def forward(
        ctx: Any, compiled: native.Kernels, before: Tensor, *addends: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden, cell, active = compiled.cell(before, *addends)
        ctx.compiled, ctx.dtype, ctx.addends = compiled, addends[0].dtype, len(addends)
        ctx.save_for_backward(active, before, cell)
        return hidden, cell

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_hidden: Tensor, by_cell: Tensor) -> tuple[Tensor | None, ...]:
        by_gates, by_before = ctx.compiled.cell_gradients(
            by_hidden, by_cell, *ctx.saved_tensors, ctx.dtype
        )
        return None, by_before, *([by_gates] * ctx.addends)
