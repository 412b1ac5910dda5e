"""The interface of the compiled kernels: :mod:`~captioning.kernels.cpu` and Triton implement it."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

MAX_ADDENDS = 3
"""The highest number of matrices that :meth:`Kernels.cell` adds up to the gates of an LSTM."""


class CompilationError(Exception):
    """The kernels cannot be compiled or loaded; the message says why in one sentence."""


class Kernels(ABC):
    """Attention and the LSTM cell with their backward passes, each in one pass over its arguments.

    ``exp_keys`` and ``grid`` have the same type, and so have all addends: single precision or
    bfloat16. Row r belongs to image ``row_index[r] // captions``. The methods here allocate the
    results, and the ``fill_`` methods of a subclass compute them. The tensors passed to these are
    contiguous, except addends, which may have a larger stride between their rows.

    Attributes:
        language: what the kernels are written in, ``c`` or ``triton``.
    """

    language: ClassVar[str]

    def attend(
        self,
        exp_keys: Float[Tensor, "images locations units"],
        grid: Float[Tensor, "images locations channels"],
        exp_query: Float32[Tensor, "rows units"],
        weight: Float32[Tensor, " units"],
        row_index: Int64[Tensor, " rows"],
        captions: int,
    ) -> tuple[Float32[Tensor, "rows locations"], Float32[Tensor, "rows channels"]]:
        """The attention weights of each row over its image's locations, and the context."""
        alpha = exp_query.new_empty(len(exp_query), exp_keys.shape[1])
        context = exp_query.new_empty(len(exp_query), grid.shape[2])
        inputs = contiguous(exp_keys, grid, exp_query, weight, row_index)
        self.fill_attention(alpha, context, *inputs, captions=captions)
        return alpha, context

    def attend_backward(
        self,
        grad_keys: Float32[Tensor, "images locations units"],
        grad_alpha: Float32[Tensor, "rows locations"],
        grad_context: Float32[Tensor, "rows channels"],
        alpha: Float32[Tensor, "rows locations"],
        exp_keys: Float[Tensor, "images locations units"],
        grid: Float[Tensor, "images locations channels"],
        exp_query: Float32[Tensor, "rows units"],
        weight: Float32[Tensor, " units"],
        row_index: Int64[Tensor, " rows"],
        captions: int,
    ) -> tuple[Float32[Tensor, "rows units"], Float32[Tensor, " units"]]:
        """The gradients with respect to the query and the weight.

        The gradient with respect to the keys is added to ``grad_keys``.
        """
        grad_query = torch.empty_like(exp_query, memory_format=torch.contiguous_format)
        grad_weight = exp_query.new_empty(len(exp_keys), exp_keys.shape[2])
        inputs = contiguous(
            grad_alpha, grad_context, alpha, exp_keys, grid, exp_query, weight, row_index
        )
        self.fill_attention_backward(grad_keys, grad_query, grad_weight, *inputs, captions=captions)
        return grad_query, grad_weight.sum(0)

    def cell(
        self,
        previous: Float32[Tensor, "rows units"],
        *addends: Float[Tensor, "rows gates"],
        for_backward: bool = True,
    ) -> tuple[
        Float32[Tensor, "rows units"],
        Float32[Tensor, "rows units"],
        Float32[Tensor, "rows gates"] | None,
    ]:
        """Hidden state, cell and, with ``for_backward``, the gates after their activations."""
        previous = previous.contiguous()
        hidden, cell = torch.empty_like(previous), torch.empty_like(previous)
        active = previous.new_empty(len(previous), 4 * previous.shape[1]) if for_backward else None
        # The elements of a row must be adjacent; those of a slice of columns are.
        addends = tuple(each if each.stride(1) == 1 else each.contiguous() for each in addends)
        self.fill_cell(hidden, cell, active, previous, addends)
        return hidden, cell, active

    def cell_backward(
        self,
        grad_hidden: Float32[Tensor, "rows units"],
        grad_cell: Float32[Tensor, "rows units"],
        active: Float32[Tensor, "rows gates"],
        previous: Float32[Tensor, "rows units"],
        cell: Float32[Tensor, "rows units"],
        dtype: torch.dtype,
    ) -> tuple[Float[Tensor, "rows gates"], Float32[Tensor, "rows units"]]:
        """The gradients with respect to each addend (in ``dtype``) and the previous cell."""
        grad_gates = torch.empty_like(active, dtype=dtype)
        grad_previous = torch.empty_like(cell)
        inputs = contiguous(grad_hidden, grad_cell, active, previous, cell)
        self.fill_cell_backward(grad_gates, grad_previous, *inputs)
        return grad_gates, grad_previous

    @abstractmethod
    def fill_attention(
        self, alpha: Tensor, context: Tensor, *inputs: Tensor, captions: int
    ) -> None:
        """Compute what :meth:`attend` returns."""

    @abstractmethod
    def fill_attention_backward(
        self,
        grad_keys: Tensor,
        grad_query: Tensor,
        grad_weight: Tensor,
        *inputs: Tensor,
        captions: int,
    ) -> None:
        """Compute what :meth:`attend_backward` returns; ``grad_weight`` is images x units."""

    @abstractmethod
    def fill_cell(
        self,
        hidden: Tensor,
        cell: Tensor,
        active: Tensor | None,
        previous: Tensor,
        addends: tuple[Tensor, ...],
    ) -> None:
        """Compute what :meth:`cell` returns."""

    @abstractmethod
    def fill_cell_backward(
        self, grad_gates: Tensor, grad_previous: Tensor, *inputs: Tensor
    ) -> None:
        """Compute what :meth:`cell_backward` returns."""


def contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in contiguous memory; a tensor that is not contiguous is copied."""
    return tuple(tensor.contiguous() for tensor in tensors)
