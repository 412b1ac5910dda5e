"""Additive (Bahdanau) attention over the locations of an image, as in Xu et al. 2015, eq. 4-5.

    e_ti = v . tanh(W_a a_i + W_h h_{t-1})        alpha_t = softmax(e_t)

The sum inside the tanh has locations x units terms for every word of every caption, so the tanh,
not a matrix product, is what attention costs on a CPU. Two facts make it cheap here:

* tanh(x + y) = 1 - 2 / (1 + e^{2x} e^{2y}): with the two exponentials taken once for each
  location and once for each word, the inner loop is a multiplication and a reciprocal.
* The derivative is 4 s (1 - s) with s that same reciprocal, so the backward pass recomputes s
  from the two small exponentials instead of keeping a tensor of
  captions x locations x units for every word.

:mod:`captioning.kernels.native` does it in C on a CPU and in Triton on a GPU, where these can be
compiled; here it is in torch.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captioning.kernels import native
from captioning.kernels.grid import exp_twice
from captioning.kernels.unrolled import refuse_second_derivative
from captioning.support.errors import CaptioningError


class Rows(NamedTuple):
    """Which captions of which images the rows of a tensor are.

    Attributes:
        place: of each row, image x captions + caption; no two are the same.
        captions: how many captions an image can have.
    """

    place: Int[Tensor, " rows"]
    captions: int

    @property
    def image(self) -> Int[Tensor, " rows"]:
        """The image of each row."""
        return self.place // self.captions

    @classmethod
    def all(cls, images: int, captions: int, device: torch.device) -> "Rows":
        """Every caption of every image, image after image."""
        return cls(torch.arange(images * captions, device=device), captions)

    def first(self, count: int) -> "Rows":
        """The first so many rows."""
        return Rows(self.place[:count], self.captions)

    def spread(
        self, rows: Float[Tensor, "rows size"], images: int
    ) -> Float[Tensor, "images captions size"]:
        """Put rows in their places; where there is none, zeros."""
        places = rows.new_zeros(images * self.captions, rows.shape[1])
        return places.index_copy(0, self.place, rows).view(images, self.captions, rows.shape[1])

    def collect(self, places: Float[Tensor, "images captions size"]) -> Float[Tensor, "rows size"]:
        """The rows from their places."""
        return places.flatten(0, 1)[self.place]


def reciprocals(
    exp_keys: Float[Tensor, "*images 1 locations units"],
    exp_query: Float[Tensor, "*images captions 1 units"],
) -> Float[Tensor, "*images captions locations units"]:
    """The terms s = 1 / (1 + e^{2x} e^{2y}), so that tanh(x + y) = 1 - 2 s."""
    return (exp_keys * exp_query).add_(1).reciprocal_()


def scores_of(
    exp_keys: Float[Tensor, "images locations units"],
    exp_query: Float[Tensor, "images captions units"],
    weight: Float[Tensor, " units"],
) -> Float[Tensor, "images captions locations"]:
    """The scores v . tanh(x + y) = sum v - 2 s . v."""
    return weight.sum() - 2 * (reciprocals(exp_keys[:, None], exp_query[:, :, None]) @ weight)


def slopes_of(
    by_scores: Float[Tensor, "images captions locations"],
    exp_keys: Float[Tensor, "images locations units"],
    exp_query: Float[Tensor, "images captions units"],
) -> tuple[
    Float[Tensor, "images locations units"],
    Float[Tensor, "images captions units"],
    Float[Tensor, " units"],
]:
    """Gradients by keys and query, without the factor 4 v, and the sum of by_scores . s."""
    s = reciprocals(exp_keys[:, None], exp_query[:, :, None])
    by_weight = torch.einsum("bkp,bkpa->a", by_scores, s)
    slope = (s - s * s).mul_(by_scores[..., None])
    return slope.sum(1), slope.sum(2), by_weight


def accelerate(mode: Literal["auto"] | bool, device: str) -> None:
    """Choose, for this process, how attention and the LSTM's cell are computed.

    Args:
        mode: True and ``auto`` compile them, in C for a CPU and in Triton for a GPU, as is done
            unasked; False leaves them to torch, and a step on a GPU without graphs.
        device: the kind of device, such as ``cuda``.

    Raises:
        CaptioningError: mode is True, and they cannot be compiled.
    """
    native.wanted = mode is not False
    if mode is True and native.kernels(device) is None:
        raise CaptioningError(
            f"compile=true: nothing can be compiled for the {device} here; see the log."
        )


BLOCK_BYTES = 2**21
"""One block of float32 terms on a CPU: within a core's share of the cache."""


def images_per_block(exp_keys: Tensor, captions: int) -> int:
    """How many images are computed at once: on a GPU all."""
    if exp_keys.is_cuda:
        return max(1, len(exp_keys))
    image_bytes = 4 * captions * exp_keys[:1].numel()
    return max(1, BLOCK_BYTES // max(image_bytes, 1))


class _SumOfWords(torch.autograd.Function):
    """The keys as they are; their gradient is what all words have added to ``by_keys``, times 4 v.

    Autograd would make and add a tensor of the keys' size for every word.
    """

    @staticmethod
    def forward(ctx: Any, keys: Tensor, by_keys: Tensor, weight: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.by_keys, ctx.dtype = by_keys, keys.dtype
        ctx.save_for_backward(weight)
        return keys.view_as(keys)

    @staticmethod
    def backward(ctx: Any, none: None) -> tuple[Tensor, None, None]:
        refuse_second_derivative()
        (weight,) = ctx.saved_tensors
        by_keys, factor = ctx.by_keys, 4 * weight.float()
        compiled = native.c_kernels_for(by_keys)
        if compiled is not None and ctx.dtype in (torch.float32, torch.bfloat16):
            gradient = torch.empty_like(by_keys, dtype=ctx.dtype)
            tensors = gradient, by_keys, factor
            compiled.call("sum_of_words", ctx.dtype, tensors, *by_keys.shape)
        else:
            gradient = (by_keys * factor).to(ctx.dtype)
            by_keys.zero_()  # for another backward pass
        return gradient, None, None


class _Attend(torch.autograd.Function):
    """alpha = softmax(v . tanh(keys + query)) and context = alpha . grid, for rows of captions.

    The backward pass recomputes the tanh, a few images at a time, and adds to ``by_keys`` for
    :class:`_SumOfWords`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        keys: Float[Tensor, "images locations units"] | None,
        by_keys: Float[Tensor, "images locations units"] | None,
        exp_keys: Float[Tensor, "images locations units"],
        grid: Float[Tensor, "images locations channels"],
        query: Float[Tensor, "rows units"],
        weight: Float[Tensor, " units"],
        rows: Rows,
    ) -> tuple[Tensor, Tensor]:
        exp_query = exp_twice(query)
        weight32 = weight.float()
        ctx.rows, ctx.by_keys, ctx.dtypes = rows, by_keys, (query.dtype, weight.dtype)
        compiled = native.kernels_for(exp_keys, grid)
        if compiled is not None:
            alpha, context = compiled.attend(exp_keys, grid, exp_query, weight32, *rows)
        else:
            images = len(exp_keys)
            step = images_per_block(exp_keys, rows.captions)
            places = exp_keys, rows.spread(exp_query, images)
            blocks = zip(*(torch.split(tensor, step) for tensor in places), strict=True)
            # Autocast would make the product of the terms with the weight in half precision.
            with torch.autocast(exp_keys.device.type, enabled=False):
                scores = torch.cat([scores_of(k, q, weight32) for k, q in blocks])
                maps = scores.softmax(-1)
                alpha, context = rows.collect(maps), rows.collect(maps.to(grid.dtype) @ grid)
        ctx.save_for_backward(exp_keys, grid, exp_query, weight32, alpha)
        return alpha, context

    @staticmethod
    @once_differentiable  # a second derivative would miss that the exponentials depend on x and y
    def backward(
        ctx: Any, by_alpha: Tensor, by_context: Tensor
    ) -> tuple[None, None, None, Tensor | None, Tensor, Tensor, None]:
        exp_keys, grid, exp_query, weight, alpha = ctx.saved_tensors
        rows: Rows = ctx.rows
        images = len(exp_keys)
        by_grid = None
        if ctx.needs_input_grad[3]:
            maps, by_contexts = rows.spread(alpha, images), rows.spread(by_context, images)
            by_grid = maps.to(by_contexts.dtype).mT @ by_contexts
        compiled = native.kernels_for(exp_keys, grid)
        if compiled is not None:
            by_query, by_weight = compiled.gradients(
                ctx.by_keys, by_alpha, by_context, alpha, exp_keys, grid, exp_query, *rows
            )
        else:
            mixed = rows.spread(by_context.to(grid.dtype), images) @ grid.mT
            by_scores = alpha * (by_alpha + rows.collect(mixed))
            by_scores = by_scores - alpha * by_scores.sum(-1, keepdim=True)
            step = images_per_block(exp_keys, rows.captions)
            places = rows.spread(by_scores, images), exp_keys, rows.spread(exp_query, images)
            blocks = zip(*(torch.split(tensor, step) for tensor in places), strict=True)
            parts = [slopes_of(*block) for block in blocks]
            every_key, every_query, every_weight = zip(*parts, strict=True)
            ctx.by_keys.add_(torch.cat(every_key))
            by_query, by_weight = rows.collect(torch.cat(every_query)), sum(every_weight)
        query_dtype, weight_dtype = ctx.dtypes
        return (
            None,
            None,
            None,
            by_grid,
            (by_query * (4 * weight)).to(query_dtype),
            (-2 * by_weight).to(weight_dtype),  # the gradients of a softmax's scores sum to 0
            None,
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
        # In bfloat16 there is half as much to read; that moves a key by 0.002 at most.
        dtype = grid.dtype if grid.dtype == torch.bfloat16 else torch.float32
        exp_keys = exp_twice(keys, dtype)
        memory = {"grid": grid, "exp_keys": exp_keys}
        if keys.requires_grad:
            memory["by_keys"] = torch.zeros_like(exp_keys, dtype=torch.float32)
            memory["keys"] = _SumOfWords.apply(keys, memory["by_keys"], self.score)
        return memory

    def forward(
        self, query: Float[Tensor, "rows units"], memory: dict[str, Tensor], rows: Rows
    ) -> tuple[Float[Tensor, "rows locations"], Float[Tensor, "rows channels"]]:
        """The weights alpha (they sum to 1 over the locations) and the context sum alpha_i a_i.

        Args:
            query: W_h h_{t-1} of each row.
            memory: of :meth:`project`.
            rows: which image each row belongs to.
        """
        names = "keys", "by_keys", "exp_keys", "grid"
        tensors = (memory.get(name) for name in names)
        alpha, context = _Attend.apply(*tensors, query, self.score, rows)
        return alpha, context
