"""What the loss and beam search ask of the scores of all words, in one pass where it is compiled.

In torch, a mean cross entropy of a training step makes eight tensors of tokens x words in single
precision, each way; beam search makes three at every word.
"""

from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captioning.kernels import native


def cross_entropy(
    scores: Float[Tensor, "tokens words"],
    targets: Int64[Tensor, " tokens"],
    label_smoothing: float = 0.0,
) -> Float32[Tensor, ""]:
    """The mean of -log softmax(scores)[target], as ``torch.nn.functional.cross_entropy`` has it.

    Args:
        scores: before the softmax; computed with in single precision, whatever they are.
        targets: the true words; 0 is padding, and does not count.
        label_smoothing: share of the probability that is spread over all words.
    """
    compiled = native.c_kernels_for(scores)
    if compiled is None or not len(targets):
        return nn.functional.cross_entropy(
            scores.float(), targets, label_smoothing=label_smoothing, ignore_index=0
        )
    loss: Tensor = _CrossEntropy.apply(scores, targets, label_smoothing, compiled)
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, targets: Tensor, smoothing: float, compiled: native.CKernels
    ) -> Tensor:
        scores, targets = native.in_one_piece(scores, targets)
        tokens, words = scores.shape
        shares = torch.tensor([1 - smoothing, smoothing / words])
        loss, normalizer = shares.new_empty(tokens), shares.new_empty(tokens)
        compiled.call(
            "cross_entropy",
            scores.dtype,
            (loss, normalizer, scores, targets, shares),
            tokens,
            words,
        )
        ctx.compiled = compiled
        count = (targets != 0).sum()
        ctx.save_for_backward(count, normalizer, scores, targets, shares)
        return loss.sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None, None, None]:
        count, *saved = ctx.saved_tensors
        scores = saved[1]
        gradient = torch.empty_like(scores)
        of_each = by_loss / count
        ctx.compiled.call(
            "cross_entropy_gradients", scores.dtype, (gradient, of_each, *saved), *scores.shape
        )
        return gradient, None, None, None


def log_sum_exp(scores: Float[Tensor, "*rows words"]) -> Float32[Tensor, "*rows"]:
    """The logarithm of the sum of e^score over all words, in single precision."""
    compiled = native.c_kernels_for(scores)
    if compiled is None:
        return scores.float().logsumexp(-1)
    scores = scores.contiguous()
    out = scores.new_empty(scores.shape[:-1], dtype=torch.float32)
    compiled.call("log_sum_exp", scores.dtype, (out, scores), out.numel(), scores.shape[-1])
    return out


def highest(
    scores: Float[Tensor, "*rows words"], count: int
) -> tuple[Float32[Tensor, "*rows best"], Int64[Tensor, "*rows best"]]:
    """The ``count`` highest scores, or all if there are fewer, and the words that they are of."""
    count = min(count, scores.shape[-1])
    compiled = native.c_kernels_for(scores)
    if compiled is None:
        values, words = scores.topk(count)
        return values.float(), words
    scores = scores.contiguous()
    values = scores.new_empty((*scores.shape[:-1], count), dtype=torch.float32)
    words = torch.empty_like(values, dtype=torch.int64)
    rows = values[..., 0].numel()
    compiled.call("highest", scores.dtype, (values, words, scores), rows, scores.shape[-1], count)
    return values, words


def forbid(
    scores: Float[Tensor, "*rows words"], banned: Int64[Tensor, "*rows many"]
) -> Float[Tensor, "*rows words"]:
    """Set in place to -inf the scores of the words in ``banned``, where one may be twice."""
    compiled = native.c_kernels_for(scores)
    if compiled is None or not scores.is_contiguous():
        return scores.scatter_(-1, banned, -torch.inf)
    rows = banned[..., 0].numel()
    tensors = scores, banned.contiguous()
    compiled.call("forbid", scores.dtype, tensors, rows, scores.shape[-1], banned.shape[-1])
    return scores
