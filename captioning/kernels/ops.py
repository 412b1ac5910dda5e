"""The interface to the kernels: ops whose results and gradients depend on their arguments alone.

Each op has a reference in plain PyTorch (:mod:`captioning.kernels.reference`), which is its
definition, and at most one implementation in C and one in Triton; :mod:`captioning.kernels.backend`
chooses between them. Models, objectives and decoding import only this module of ``kernels``.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from captioning.kernels import additive, products, recurrence, reference, vocabulary
from captioning.kernels.additive import AdditiveKeys
from captioning.kernels.backend import (
    current_backend,
    is_observed,
    is_transformed,
    kernels_for,
)
from captioning.kernels.cell import LSTMCell
from captioning.kernels.cpu.bindings import CKernels
from captioning.kernels.deferred import DeferredWeightGradients
from captioning.kernels.dropout import byte_dropout
from captioning.kernels.library import MAX_ADDENDS
from captioning.kernels.preparation import MAX_CHANNELS
from captioning.kernels.preparation import standardize as standardize_in_c
from captioning.kernels.reference import RecurrenceWeights, at_least_single
from captioning.kernels.rows import Rows

__all__ = [
    "AdditiveKeys",
    "Dropout",
    "RecurrenceWeights",
    "Rows",
    "additive_attention",
    "at_least_single",
    "attention_recurrence",
    "cross_entropy",
    "deferred_weight_gradients",
    "log_sum_exp",
    "lstm_cell",
    "mask_tokens",
    "product_dtype",
    "standardize",
    "topk",
]


def additive_attention(
    query: Float[Tensor, "rows units"],
    keys: AdditiveKeys,
    weight: Float[Tensor, " units"],
    grid: Float[Tensor, "images locations channels"],
    rows: Rows,
) -> tuple[Float[Tensor, "rows locations"], Float[Tensor, "rows channels"]]:
    """Additive attention of captions over the locations of their images (Xu et al. 2015, eq. 4-5).

        e_i = v . tanh(W_a a_i + W_h h)    alpha = softmax(e)    z = sum_i alpha_i a_i

    Args:
        query: W_h h of each row.
        keys: W_a a_i of each location; create it once for all words of a caption.
        weight: v, which may be another tensor at each call.
        grid: a_i of each location.
        rows: the caption, and thereby the image, of each row.

    Returns:
        The attention weights alpha, whose rows sum to 1, and the context z; in single precision, or
        in double precision if an argument is.
    """
    kernels = kernels_for("additive_attention", keys.keys, grid)
    if kernels is None or not additive.fits(query, keys.keys, weight, grid, rows):
        return reference.additive_attention(query, keys.keys, weight, grid, rows)
    return additive.additive_attention(query, keys, weight, grid, rows, kernels)


def lstm_cell(
    cell: Float[Tensor, "rows units"], *addends: Float[Tensor, "rows gates"]
) -> tuple[Float[Tensor, "rows units"], Float[Tensor, "rows units"]]:
    """One step of an LSTM from the products that add up to its gates.

    Args:
        cell: the previous cell c_{t-1}, rows x H.
        addends: rows x 4H each; their sum is the input, forget, cell and output gate, in this
            order, before the activations.

    Returns:
        The hidden state h_t and the cell c_t, in single precision at least.
    """
    kernels = kernels_for("lstm_cell", *addends)
    fits = all(
        gates.shape == (cell.shape[0], 4 * cell.shape[-1]) and gates.device == cell.device
        for gates in addends
    )
    if kernels is None or not fits or len(addends) > MAX_ADDENDS or cell.dtype != torch.float32:
        return reference.lstm_cell(cell, *addends)
    if torch.is_grad_enabled():
        hidden, new_cell = LSTMCell.apply(kernels, cell, *addends)
    else:
        hidden, new_cell, _ = kernels.cell(cell, *addends, for_backward=False)
    return hidden, new_cell


def attention_recurrence(
    gates: Float[Tensor, "tokens gates"],
    query: Float[Tensor, "tokens attention"] | None,
    hidden: Float[Tensor, "rows units"],
    cell: Float[Tensor, "rows units"],
    keep: Float[Tensor, "rows units"] | None,
    counts: Sequence[int],
    keys: AdditiveKeys,
    grid: Float[Tensor, "images locations channels"],
    rows: Rows,
    weights: RecurrenceWeights,
) -> (
    tuple[
        Float[Tensor, "tokens units"],
        Float[Tensor, "tokens channels"],
        Float[Tensor, "tokens locations"],
    ]
    | None
):
    """An LSTM with additive attention over all words of captions, if one kernel can compute it.

    There is a kernel for training in bfloat16, for the CPUs on which it was measured to be faster
    (:func:`captioning.kernels.products.pays`). Elsewhere, and while somebody observes PyTorch's
    operations, the caller computes the words one after another by the other ops.

    Args:
        gates: what the words add to the gates of the LSTM; all first words, all second words, ...
        query: what the words add to the query of the attention; None if it is h_{t-1} alone.
        hidden: h_0, in single precision.
        cell: c_0, in single precision.
        keep: by what h_{t-1} is multiplied at every word: recurrent dropout; None without it.
        counts: the number of rows at each word; those at a word are the first ones of all rows.
        keys: W_a a_i of each location.
        grid: a_i of each location.
        rows: the caption, and thereby the image, of each row.
        weights: the parameters.

    Returns:
        h_t, z_t after its gate, and alpha_t of each token, in single precision; None if no kernel
        can compute them.
    """
    kernels = kernels_for("attention_recurrence", keys.keys, grid)
    if (
        not isinstance(kernels, CKernels)
        or not products.pays()
        or is_observed()
        or product_dtype(hidden) != torch.bfloat16
        or not recurrence.fits(
            gates, query, hidden, cell, keep, counts, keys.keys, grid, rows, weights
        )
    ):
        return None
    words: tuple[Tensor, Tensor, Tensor] = recurrence.AttentionRecurrence.apply(
        kernels, rows, counts, keys.exponentials(), grid, keep, keys.keys, gates, query, hidden,
        cell, *weights,
    )  # fmt: skip
    return words


def standardize(
    grid: Float[Tensor, "images locations channels"], eps: float = 1e-5
) -> tuple[Float[Tensor, "images locations channels"], Float[Tensor, "images channels"]]:
    """Standardise the channels of each location: a LayerNorm without parameters.

    Args:
        grid: in any precision.
        eps: added to the variance.

    Returns:
        The standardised grid, under autocast in autocast's type, to which the following products
        would cast it; and its mean over the locations, computed before the cast.
    """
    dtype = product_dtype(grid)
    mean_like = grid.new_empty(0, dtype=torch.promote_types(grid.dtype, torch.float32))
    kernels = kernels_for("standardize", mean_like)
    if (
        isinstance(kernels, CKernels)
        and dtype in (torch.float32, torch.bfloat16)
        and grid.shape[2] <= MAX_CHANNELS
        and not grid.requires_grad
    ):
        return standardize_in_c(grid, eps, dtype, kernels)
    grid, mean = reference.standardize(grid, eps)
    return grid.to(dtype), mean


def cross_entropy(
    logits: Float[Tensor, "tokens words"],
    targets: Int64[Tensor, " tokens"],
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """The mean of -log softmax(logits)[target] over the real tokens; 0 if there are none.

    Args:
        logits: of any floating type; the loss is computed in single precision at least.
        targets: the true words; padding (0) is ignored.
        label_smoothing: share of the probability that is spread over all words.
    """
    kernels = kernels_for("cross_entropy", logits)
    if (
        not isinstance(kernels, CKernels)
        or not len(targets)
        or logits.shape[:-1] != targets.shape
        or not vocabulary.in_vocabulary(targets, logits)
    ):
        return reference.cross_entropy(logits, targets, label_smoothing)
    loss: Tensor = vocabulary.CrossEntropy.apply(logits, targets, label_smoothing, kernels)
    return loss


def log_sum_exp(logits: Float[Tensor, "*rows words"]) -> Float[Tensor, "*rows"]:
    """The logarithm of the sum of e^logit over all words.

    If a gradient is needed, the reference computes it under every backend.
    """
    kernels = _without_gradient("log_sum_exp", logits)
    if kernels is None:
        return reference.log_sum_exp(logits)
    return vocabulary.log_sum_exp(logits, kernels)


def topk(
    logits: Float[Tensor, "*rows words"], k: int
) -> tuple[Float[Tensor, "*rows k"], Int64[Tensor, "*rows k"]]:
    """The k highest logits in descending order, or all if there are fewer, and their words."""
    kernels = _without_gradient("topk", logits) if k > 0 else None
    return reference.topk(logits, k) if kernels is None else vocabulary.topk(logits, k, kernels)


def mask_tokens(
    logits: Float[Tensor, "*rows words"], banned: Int64[Tensor, "*rows many"]
) -> Float[Tensor, "*rows words"]:
    """Set the logits of the banned words to -inf, in place.

    Args:
        logits: before or after the softmax.
        banned: the words to mask in each row, which may contain duplicates.
    """
    kernels = _without_gradient("mask_tokens", logits)
    if (
        kernels is None
        or not logits.is_contiguous()
        or banned.shape[:-1] != logits.shape[:-1]
        or not vocabulary.in_vocabulary(banned, logits)
    ):
        return reference.mask_tokens(logits, banned)
    return vocabulary.mask_tokens(logits, banned, kernels)


def _without_gradient(op: str, logits: Tensor) -> CKernels | None:
    """The kernels of an op that has no backward kernel; None if a gradient is needed."""
    if logits.requires_grad and torch.is_grad_enabled():
        return None
    kernels = kernels_for(op, logits)
    return kernels if isinstance(kernels, CKernels) else None


class Dropout(nn.Dropout):
    """Like :class:`torch.nn.Dropout`, with faster random numbers on a CPU unless backend=torch."""

    static = True

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """In training, set elements to zero with probability ``p`` and scale the others."""
        plain = input.device.type != "cpu" or current_backend() == "torch" or is_transformed()
        if not self.training or self.p == 0 or plain:
            return super().forward(input)
        return byte_dropout(input, self.p)


def deferred_weight_gradients() -> AbstractContextManager[object]:
    """Within the block, the weight gradients of linear layers are computed by one product each.

    This is for a loop over words, in which every call would otherwise compute a gradient of the
    weight's size. Results and gradients equal those of ordinary calls. Under ``backend=torch``, the
    block has no effect.
    """
    return nullcontext() if current_backend() == "torch" else DeferredWeightGradients()


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The type in which matrix products with a tensor are computed.

    It is autocast's type if autocast is on. Otherwise it is the tensor's, but at least single
    precision, because grids are stored in half precision.
    """
    device = tensor.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(tensor.dtype, torch.float32)
