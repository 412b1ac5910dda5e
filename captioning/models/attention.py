"""Additive (Bahdanau) attention over the locations of an image, as in Xu et al. 2015, eq. 4-5.

    e_ti = v . tanh(W_a a_i + W_h h_{t-1})        alpha_t = softmax(e_t)

The sum inside the tanh has locations x units terms for every word of every caption, so the tanh,
not a matrix product, is what attention costs on a CPU. Two facts make it cheap here:

* tanh(x + y) = 1 - 2 / (1 + e^{2x} e^{2y}): with the two exponentials taken once for each
  location and once for each word, the inner loop is a multiplication and a reciprocal.
* The derivative is 4 s (1 - s) with s that same reciprocal, so the backward pass recomputes s
  from the two small exponentials instead of keeping a tensor of
  images x captions x locations x units for every word.
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captioning.errors import CaptioningError

log = logging.getLogger(__name__)

LIMIT = 40.0
"""Projections are clamped to +-LIMIT before e^{2x}: e^80 is still finite, so that no infinity can
meet a zero. Since tanh is flat to the last bit of float32 from 9 on, that changes nothing unless
key and query both exceed 31 and nearly cancel, which is far from where training leads."""


def reciprocals(
    exp_keys: Float[Tensor, "*images 1 locations units"],
    exp_query: Float[Tensor, "*images captions 1 units"],
) -> Float[Tensor, "*images captions locations units"]:
    """The terms s = 1 / (1 + e^{2x} e^{2y}), so that tanh(x + y) = 1 - 2 s."""
    return (exp_keys * exp_query).add_(1).reciprocal_()


def _scores(exp_keys: Tensor, exp_query: Tensor, weight: Tensor) -> Tensor:
    """The scores of a block of images, all in cache at once."""
    return weight.sum() - 2 * (reciprocals(exp_keys[:, None], exp_query[:, :, None]) @ weight)


def _gradients(
    grad: Tensor, exp_keys: Tensor, exp_query: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a block of scores for the keys, the query and the weight."""
    s = reciprocals(exp_keys[:, None], exp_query[:, :, None])
    grad_weight = grad.sum() - 2 * torch.einsum("bkp,bkpa->a", grad, s)
    slope = (s - s * s).mul_(grad[..., None])
    return (
        slope.sum(1) * (4 * weight),
        slope.sum(2) * (4 * weight),
        grad_weight,
    )


class _AdditiveScores(torch.autograd.Function):
    """v . tanh(keys + query), recomputing the tanh in the backward pass, a few images at a time."""

    BLOCK_BYTES = 2**21  # one block of float32 terms: within a core's share of the cache

    @staticmethod
    def forward(
        ctx: Any,
        keys: Float[Tensor, "images locations units"],
        exp_keys: Float[Tensor, "images locations units"],
        query: Float[Tensor, "images captions units"],
        weight: Float[Tensor, " units"],
    ) -> Float[Tensor, "images captions locations"]:
        exp_query = (2 * query.float().clamp(-LIMIT, LIMIT)).exp_()
        weight32 = weight.float()
        ctx.save_for_backward(exp_keys, exp_query, weight32)
        ctx.dtypes = keys.dtype, query.dtype, weight.dtype
        step = _AdditiveScores.images_per_block(exp_keys, exp_query)
        # Autocast would make the product of the terms with the weight in half precision.
        with torch.autocast(exp_keys.device.type, enabled=False):
            if step >= len(exp_keys):
                return scores_kernel(exp_keys, exp_query, weight32)
            blocks = zip(torch.split(exp_keys, step), torch.split(exp_query, step), strict=True)
            return torch.cat([scores_kernel(k, q, weight32) for k, q in blocks])

    @staticmethod
    @once_differentiable  # a second derivative would miss that the exponentials depend on x and y
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        exp_keys, exp_query, weight = ctx.saved_tensors
        (grad,) = grads
        step = _AdditiveScores.images_per_block(exp_keys, exp_query)
        blocks = zip(
            torch.split(grad.float(), step),
            torch.split(exp_keys, step),
            torch.split(exp_query, step),
            strict=True,
        )
        parts = [gradients_kernel(g, k, q, weight) for g, k, q in blocks]
        by_keys, by_query, by_weight = zip(*parts, strict=True)
        keys_dtype, query_dtype, weight_dtype = ctx.dtypes
        return (
            torch.cat(by_keys).to(keys_dtype),
            None,
            torch.cat(by_query).to(query_dtype),
            torch.stack(by_weight).sum(0).to(weight_dtype),
        )

    @staticmethod
    def images_per_block(exp_keys: Tensor, exp_query: Tensor) -> int:
        if compiled() or exp_keys.is_cuda:
            return len(exp_keys)
        terms = exp_query.shape[1] * math.prod(exp_keys.shape[1:])
        image_bytes = terms * exp_keys.element_size()
        return max(1, _AdditiveScores.BLOCK_BYTES // max(image_bytes, 1))


scores_kernel: Callable[..., Tensor] = _scores
gradients_kernel: Callable[..., tuple[Tensor, Tensor, Tensor]] = _gradients


def compiled() -> bool:
    """Whether the kernels are compiled: then they need no blocks, since they keep no terms."""
    return scores_kernel is not _scores


def compile_kernels(*, required: bool = False) -> None:
    """Fuse the two kernels with torch.compile, in place, for this process.

    That takes some seconds, or half a minute the first time on a machine, and a C++ compiler;
    without one the kernels stay as they are, unless ``required``.

    Raises:
        CaptioningError: they are required and cannot be compiled.
    """
    global scores_kernel, gradients_kernel
    if compiled():
        return
    scores = torch.compile(_fused_scores, dynamic=True)
    gradients = torch.compile(_fused_gradients, dynamic=True)
    keys, query, weight = torch.ones(2, 9, 64), torch.ones(2, 3, 64), torch.ones(64)
    try:
        gradients(scores(keys, query, weight), keys, query, weight)
    except Exception as error:  # whatever a compiler can raise: it is an offer, not a need
        reason = str(error).strip().partition("\n")[0]
        if required:
            raise CaptioningError(f"compile=true: torch.compile failed here ({reason}).") from error
        log.info("The attention is not compiled, and so slower: %s", reason)
        return
    scores_kernel, gradients_kernel = scores, gradients


def _fused_scores(exp_keys: Tensor, exp_query: Tensor, weight: Tensor) -> Tensor:
    s = 1 / (1 + exp_keys[:, None] * exp_query[:, :, None])
    return (weight - 2 * weight * s).sum(-1)


def _fused_gradients(
    grad: Tensor, exp_keys: Tensor, exp_query: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    s = 1 / (1 + exp_keys[:, None] * exp_query[:, :, None])
    slope = (s - s * s) * grad[..., None]
    return (
        slope.sum(1) * (4 * weight),
        slope.sum(2) * (4 * weight),
        ((1 - 2 * s) * grad[..., None]).sum((0, 1, 2)),
    )


class AdditiveAttention(nn.Module):
    """Soft attention of any number of captions over the locations of each image.

    Args:
        channels: numbers a location has (C; 512 for VGG16's conv5_3).
        attention_dim: units of the hidden layer (A), the paper's attention MLP.
    """

    def __init__(self, channels: int, attention_dim: int) -> None:
        super().__init__()
        self.key = nn.Linear(channels, attention_dim)
        self.score = nn.Parameter(torch.empty(attention_dim).normal_(std=attention_dim**-0.5))

    def project(self, grid: Float[Tensor, "images locations channels"]) -> dict[str, Tensor]:
        """What is needed of an image for all its words: W_a a_i and e^{2 W_a a_i}, taken once."""
        keys = self.key(grid)
        with torch.no_grad():
            exp_keys = (2 * keys.float().clamp(-LIMIT, LIMIT)).exp_()
        return {"keys": keys, "exp_keys": exp_keys}

    def forward(
        self, query: Float[Tensor, "images captions units"], memory: dict[str, Tensor]
    ) -> Float[Tensor, "images captions locations"]:
        """The weights alpha (they sum to 1 over the locations), for the queries W_h h_{t-1}."""
        scores: Tensor = _AdditiveScores.apply(
            memory["keys"], memory["exp_keys"], query, self.score
        )
        return scores.softmax(-1)
