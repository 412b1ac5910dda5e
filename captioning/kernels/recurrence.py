"""The loop over the words of an LSTM with additive attention as one op, in bfloat16 on a CPU.

As separate operations, a word costs some forty calls, of which each allocates its results, casts
its arguments and leaves a node for the backward pass. Here all words write into tensors that are
allocated once. The query and the gate of the context are one product, because both multiply
h_{t-1}, and so are the two addends of the LSTM's gates; :mod:`captioning.kernels.products` computes
them. The gradient with respect to each weight is one product of all words.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from captioning.kernels.cpu.bindings import CKernels
from captioning.kernels.deferred import KERNEL_TYPES, ORDINARY, first_derivative_only
from captioning.kernels.library import contiguous
from captioning.kernels.preparation import exp2x
from captioning.kernels.products import PackedMatrix
from captioning.kernels.reference import RecurrenceWeights
from captioning.kernels.rows import Rows

Sizes = list[tuple[Tensor | None, tuple[int, ...]]]
"""Tensors, which may be missing, and the shape that each must have."""


def spans(counts: Sequence[int]) -> list[slice]:
    """The tokens of each word, where word t has ``counts[t]`` of them."""
    return [slice(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True)]


def fits(
    gates: Tensor,
    query: Tensor | None,
    hidden: Tensor,
    cell: Tensor,
    keep: Tensor | None,
    counts: Sequence[int],
    keys: Tensor,
    grid: Tensor,
    rows: Rows,
    weights: RecurrenceWeights,
) -> bool:
    """Whether :class:`AttentionRecurrence` supports these arguments; it checks nothing itself."""
    if weights.query_bias is None or (weights.gate is None) != (weights.gate_bias is None):
        return False
    if keys.dim() != 3 or grid.dim() != 3 or hidden.dim() != 2 or not counts:
        return False
    tokens, (count, units), (images, locations, channels) = sum(counts), hidden.shape, grid.shape
    attention, gate = keys.shape[2], 0 if weights.gate is None else len(weights.gate)
    states: Sizes = [(hidden, (count, units)), (cell, (count, units)), (keep, (count, units))]
    words: Sizes = [
        (gates, (tokens, 4 * units)),
        (query, (tokens, attention)),
        (keys, (images, locations, attention)),
        (grid, (images, locations, channels)),
    ]
    sizes: list[tuple[int, ...]] = [
        (attention, units), (attention,), (attention,), (gate, units), (gate,),
        (4 * units, units), (4 * units, channels),
    ]  # fmt: skip
    parameters: Sizes = list(zip(weights, sizes, strict=True))
    given = [each for each, _ in (*states, *words, *parameters) if each is not None]
    constant = [grid] if keep is None else [grid, keep]
    return (
        all(each is None or each.shape == shape for each, shape in (*states, *words, *parameters))
        and all(each is None or each.dtype == torch.float32 for each, _ in states)
        and all(each is None or each.dtype == torch.bfloat16 for each, _ in words)
        and all(each is None or each.dtype in KERNEL_TYPES for each, _ in parameters)
        and all(type(each) in ORDINARY and each.device == grid.device for each in given)
        and (gate in (0, 1, channels) and units % 2 == channels % 2 == 0)  # read in pairs
        and (rows.images == images and len(rows.index) == count == counts[0])
        and (list(counts) == sorted(counts, reverse=True) and counts[-1] > 0)
        and not (torch.is_grad_enabled() and any(each.requires_grad for each in constant))
    )


class AttentionRecurrence(torch.autograd.Function):
    """The op :func:`captioning.kernels.reference.attention_recurrence`, by C functions.

    Names with ``into_`` are the weights that are one matrix here: ``into_attention`` is the weight
    of h_{t-1} in the query and in the gate of the context, and ``into_gates`` the weight of
    [h_{t-1}; z_t] in the gates of the LSTM.
    """

    @staticmethod
    def forward(
        ctx: Any,
        kernels: CKernels,
        rows: Rows,
        counts: Sequence[int],
        exp_keys: Tensor,
        grid: Tensor,
        keep: Tensor | None,
        keys: Tensor,
        gates: Tensor,
        query: Tensor | None,
        first_hidden: Tensor,
        first_cell: Tensor,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = RecurrenceWeights(*parameters)  # type: ignore[arg-type]
        tokens, units, channels = sum(counts), first_hidden.shape[1], grid.shape[2]
        attention, gate = len(weights.query), 0 if weights.gate is None else len(weights.gate)

        def stacked(first: Tensor, second: Tensor | None, dimension: int) -> Tensor:
            parts = [each.bfloat16() for each in (first, second) if each is not None]
            return torch.cat(parts, dimension)

        into_attention = stacked(weights.query, weights.gate, 0)
        into_gates = stacked(weights.hidden, weights.context, 1)
        bias = stacked(weights.query_bias, weights.gate_bias, 0)[None]
        if query is not None:
            bias = bias.repeat(tokens, 1)
            bias[:, :attention] += query
        attention_matrix = PackedMatrix(kernels, into_attention.T)
        gates_matrix = PackedMatrix(kernels, into_gates.T)

        def single(width: int) -> Tensor:
            return grid.new_empty(tokens, width, dtype=torch.float32)

        inputs = grid.new_empty(tokens, units + channels)  # [h_{t-1}; z_t], in bfloat16
        exp_query, alpha, looked = single(attention), single(grid.shape[1]), single(channels)
        beta, context = (single(gate), single(channels)) if gate else (None, looked)
        hidden, cell, active = single(units), single(units), single(4 * units)
        exp_keys, grid, gates, score, index = contiguous(
            exp_keys, grid, gates, weights.score.float(), rows.index
        )
        previous = first_hidden, first_cell
        for word in spans(counts):
            count = word.stop - word.start
            before_hidden, before_cell = (each[:count].contiguous() for each in previous)
            read = inputs[word]
            if keep is None:
                read[:, :units] = before_hidden
            else:
                torch.mul(before_hidden, keep[:count], out=read[:, :units])
            start = bias if query is None else bias[word]
            attending = attention_matrix.product(read[:, :units], start)
            exp_query[word] = exp2x(attending[:, :attention])
            arrays = exp_keys, grid, exp_query[word], score, index[:count]
            kernels.fill_attention(alpha[word], looked[word], *arrays, captions=rows.captions)
            if beta is not None:
                torch.sigmoid(attending[:, attention:], out=beta[word])
                torch.mul(beta[word], looked[word], out=context[word])
            read[:, units:] = context[word]
            summed = gates_matrix.product(read, gates[word])
            kernels.fill_cell(hidden[word], cell[word], active[word], before_cell, (summed,))
            previous = hidden[word], cell[word]

        ctx.kernels, ctx.rows, ctx.counts = kernels, rows, counts
        ctx.dtypes = [None if each is None else each.dtype for each in parameters]
        ctx.gate = gate
        ctx.save_for_backward(
            exp_keys, grid, keep, first_cell, score, index, into_attention, into_gates, inputs,
            exp_query, alpha, looked, beta, cell, active,
        )  # fmt: skip
        return hidden, context, alpha

    @staticmethod
    @first_derivative_only
    def backward(
        ctx: Any, grad_hidden: Tensor, grad_context: Tensor, grad_alpha: Tensor
    ) -> tuple[Tensor | None, ...]:
        (
            exp_keys, grid, keep, first_cell, score, index, into_attention, into_gates, inputs,
            exp_query, alpha, looked, beta, cell, active,
        ) = ctx.saved_tensors  # fmt: skip
        kernels, rows, counts, gate = ctx.kernels, ctx.rows, ctx.counts, ctx.gate
        (tokens, units), attention = cell.shape, exp_query.shape[1]
        attention_matrix = PackedMatrix(kernels, padded(into_attention))
        gates_matrix = PackedMatrix(kernels, into_gates)
        # The gradients with respect to the sums that enter the LSTM's gates, and the query and the
        # gate of the context.
        grad_gates = inputs.new_empty(tokens, 4 * units)
        grad_attending = inputs.new_zeros(tokens, attention_matrix.shape[0])
        grad_keys = torch.zeros_like(exp_keys, dtype=torch.float32)
        grad_score = score.new_zeros(len(exp_keys), attention)
        later_hidden, later_cell = cell.new_empty(0, units), cell.new_empty(0, units)
        grad_hidden, grad_context = grad_hidden.contiguous(), grad_context.contiguous()
        words = spans(counts)
        for place in reversed(range(len(words))):
            word, count = words[place], counts[place]
            before = cell[words[place - 1]][:count] if place else first_cell.contiguous()
            # Captions that end here have no later words.
            grad_cell = cell.new_zeros(count, units)
            grad_cell[: len(later_cell)] = later_cell
            of_hidden = grad_hidden[word].clone()
            of_hidden[: len(later_hidden)] += later_hidden
            later_cell = torch.empty_like(grad_cell)
            kernels.fill_cell_backward(
                grad_gates[word], later_cell, of_hidden, grad_cell, active[word], before, cell[word]
            )
            of_inputs = gates_matrix.product(grad_gates[word])
            of_context = of_inputs[:, units:] + grad_context[word]
            if beta is not None:
                slope = torch.ops.aten.sigmoid_backward(of_context * looked[word], beta[word])
                slope = slope.sum(1, keepdim=True) if gate == 1 else slope
                grad_attending[word, attention : attention + gate] = slope
                of_context = of_context * beta[word]
            grad_query, of_score = torch.empty_like(exp_query[word]), torch.empty_like(grad_score)
            kernels.fill_attention_backward(
                grad_keys, grad_query, of_score, grad_alpha[word].contiguous(),
                of_context.contiguous(), alpha[word], exp_keys, grid, exp_query[word], score,
                index[:count], captions=rows.captions,
            )  # fmt: skip
            grad_score += of_score
            grad_attending[word, :attention] = grad_query
            later_hidden = attention_matrix.product(grad_attending[word])
            later_hidden += of_inputs[:, :units]
            if keep is not None:
                later_hidden *= keep[:count]

        grad_attending = grad_attending[:, : attention + gate]
        of_attention = grad_attending.mT @ inputs[:, :units]
        of_gates = grad_gates.mT @ inputs
        of_bias = grad_attending.sum(0)
        gradients = RecurrenceWeights(
            of_attention[:attention],
            of_bias[:attention],
            grad_score.sum(0),
            of_attention[attention:] if gate else None,
            of_bias[attention:] if gate else None,
            of_gates[:, :units],
            of_gates[:, units:],
        )
        parameters = [
            None if each is None else each.to(dtype)
            for each, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (
            *[None] * 6,
            grad_keys.to(exp_keys.dtype) if ctx.needs_input_grad[6] else None,
            grad_gates,
            grad_attending[:, :attention] if ctx.needs_input_grad[8] else None,
            later_hidden,
            later_cell,
            *parameters,
        )


def padded(matrix: Tensor) -> Tensor:
    """The matrix with an even number of rows, the last of which may be zero."""
    return matrix if len(matrix) % 2 == 0 else torch.cat([matrix, torch.zeros_like(matrix[:1])])
