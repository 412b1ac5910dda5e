"""Operations on the logits of all words, by C kernels in one pass each.

In plain PyTorch, the mean cross entropy of a training step allocates eight tensors of tokens x
words in single precision in each direction, and beam search allocates three at every word.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from captioning.kernels.cpu.bindings import CKernels
from captioning.kernels.deferred import first_derivative_only
from captioning.kernels.library import contiguous
from captioning.support.special_tokens import PAD


class CrossEntropy(torch.autograd.Function):
    """The op :func:`captioning.kernels.reference.cross_entropy` by C kernels."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, smoothing: float, kernels: CKernels
    ) -> Tensor:
        logits, targets = contiguous(logits, targets)
        tokens, words = logits.shape
        shares = logits.new_tensor([1 - smoothing, smoothing / words], dtype=torch.float32)
        loss, normalizer = shares.new_empty(tokens), shares.new_empty(tokens)
        tensors = loss, normalizer, logits, targets, shares
        kernels.call("cross_entropy", logits.dtype, tensors, tokens, words)
        count = (targets != PAD).sum().clamp(min=1)
        ctx.kernels = kernels
        ctx.save_for_backward(count, normalizer, logits, targets, shares)
        return loss.sum() / count

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        count, *saved = ctx.saved_tensors
        logits = saved[1]
        grad = torch.empty_like(logits)
        tensors = grad, grad_loss / count, *saved
        ctx.kernels.call("cross_entropy_backward", logits.dtype, tensors, *logits.shape)
        return grad, None, None, None


def log_sum_exp(logits: Tensor, kernels: CKernels) -> Tensor:
    """The op :func:`captioning.kernels.reference.log_sum_exp` by a C kernel."""
    logits = logits.contiguous()
    out = logits.new_empty(logits.shape[:-1], dtype=torch.float32)
    kernels.call("log_sum_exp", logits.dtype, (out, logits), out.numel(), logits.shape[-1])
    return out


def topk(logits: Tensor, k: int, kernels: CKernels) -> tuple[Tensor, Tensor]:
    """The op :func:`captioning.kernels.reference.topk`; among equal logits, the first words win."""
    k = min(k, logits.shape[-1])
    logits = logits.contiguous()
    values = logits.new_empty((*logits.shape[:-1], k), dtype=torch.float32)
    words = torch.empty_like(values, dtype=torch.int64)
    integers = values[..., 0].numel(), logits.shape[-1], k
    kernels.call("topk", logits.dtype, (values, words, logits), *integers)
    return values, words


def mask_tokens(logits: Tensor, banned: Tensor, kernels: CKernels) -> Tensor:
    """The op :func:`captioning.kernels.reference.mask_tokens`, for contiguous logits."""
    integers = banned[..., 0].numel(), logits.shape[-1], banned.shape[-1]
    kernels.call("mask_tokens", logits.dtype, (logits, banned.contiguous()), *integers)
    if not logits.is_inference():
        # Autograd then refuses a backward pass that needs the logits before this change.
        increment_version(logits)
    return logits


def in_vocabulary(words: Tensor, logits: Tensor) -> bool:
    """Whether all indices are valid words, so that the kernels stay within the logits' memory."""
    if words.dtype != torch.int64:
        return False
    lowest, highest = words.aminmax() if words.numel() else (0, 0)
    return int(lowest) >= 0 and int(highest) < max(logits.shape[-1], 1)
