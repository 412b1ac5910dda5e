"""Additive attention by compiled kernels.

The tanh is applied to locations x units sums for every word of every caption, so that on a CPU it
is the tanh, and not a matrix product, that takes the time. Two identities make it cheap:

* tanh(x + y) = 1 - 2 s with s = 1 / (1 + e^{2x} e^{2y}): the exponentials are taken once for each
  location and once for each word, and the inner loop is a multiplication and a reciprocal.
* The derivative is 4 s (1 - s), so that the backward pass computes s again from the two small
  exponentials instead of keeping captions x locations x units numbers for every word.

All words of a caption share the keys of the image. Autograd would make one gradient of the keys'
size for every word and add them up; here the gradient of each word is added to one tensor in place.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from captioning.kernels.deferred import (
    current_backward_pass,
    first_derivative_only,
    forget_afterwards,
)
from captioning.kernels.library import Kernels
from captioning.kernels.preparation import exp2x
from captioning.kernels.rows import Rows

GradientSums = dict[int, Tensor]
"""The gradient with respect to the keys, summed over words, by the number of the backward pass."""


class AdditiveKeys:
    """The keys W_a a_i of images, with cached values that all attention to these keys shares.

    Indexing selects images, as for a tensor. The cached values are computed when they are first
    needed, and again after an in-place change of the keys. Copies have no cached values.
    """

    def __init__(self, keys: Float[Tensor, "images locations units"]) -> None:
        self._keys = keys
        self._exp: tuple[int, Tensor] | None = None
        self._linked: tuple[int, Tensor, GradientSums] | None = None

    def __reduce__(self) -> tuple[type["AdditiveKeys"], tuple[Tensor]]:
        # Copies and pickles contain the keys only.
        return AdditiveKeys, (self.keys,)

    @property
    def keys(self) -> Float[Tensor, "images locations units"]:
        """The keys; always the same tensor."""
        return self._keys

    def __getitem__(self, images: Any) -> "AdditiveKeys":
        """The keys of some images."""
        selected = AdditiveKeys(self.keys[images])
        if self._exp is not None and self._exp[0] == _version(self.keys):
            selected._exp = _version(selected.keys), self._exp[1][images]
        return selected

    def exponentials(self) -> Tensor:
        """The exponentials e^{2 keys}, in the type of the keys.

        In bfloat16 they take half the memory traffic of float32, and their rounding is equivalent
        to an error of at most 0.002 in a key.
        """
        version = _version(self.keys)
        if self._exp is None or self._exp[0] != version or version < 0:
            self._exp = version, exp2x(self.keys, self.keys.dtype)
        return self._exp[1]

    def linked(self) -> tuple[Tensor | None, GradientSums]:
        """The keys for :class:`_Attend`, and the sums to which it adds their gradient.

        The first is None if no gradient with respect to the keys is needed.
        """
        if not (self.keys.requires_grad and torch.is_grad_enabled()):
            return None, {}
        version = _version(self.keys)
        if self._linked is None or self._linked[0] != version:
            sums: GradientSums = {}
            self._linked = version, _SumOverWords.apply(self.keys, sums), sums
        return self._linked[1:]


def _version(tensor: Tensor) -> int:
    """The number of in-place changes of a tensor; -1 if it is not known."""
    return -1 if tensor.is_inference() else tensor._version


class _SumOverWords(torch.autograd.Function):
    """The identity on the keys; the backward pass returns the gradient summed over all words."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, sums: GradientSums) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.sums, ctx.dtype = sums, keys.dtype
        return keys.view_as(keys)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        total = ctx.sums.pop(current_backward_pass(), None)
        return (grad if total is None else total.to(ctx.dtype)), None


class _Attend(torch.autograd.Function):
    """Attention weights (rows x P) and context (rows x C) of rows of captions.

    The backward pass adds the gradient with respect to the keys to ``sums``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        linked_keys: Float[Tensor, "images locations units"] | None,
        sums: GradientSums,
        exp_keys: Float[Tensor, "images locations units"],
        grid: Float[Tensor, "images locations channels"],
        query: Float[Tensor, "rows units"],
        weight: Float[Tensor, " units"],
        rows: Rows,
        kernels: Kernels,
    ) -> tuple[Tensor, Tensor]:
        exp_query, weight32 = exp2x(query), weight.float()
        alpha, context = kernels.attend(
            exp_keys, grid, exp_query, weight32, rows.index, rows.captions
        )
        ctx.rows, ctx.kernels, ctx.sums = rows, kernels, sums
        ctx.dtypes = query.dtype, weight.dtype
        ctx.save_for_backward(exp_keys, grid, exp_query, weight32, alpha)
        return alpha, context

    @staticmethod
    @first_derivative_only
    def backward(
        ctx: Any, grad_alpha: Tensor, grad_context: Tensor
    ) -> tuple[None, None, None, Tensor | None, Tensor, Tensor, None, None]:
        exp_keys, grid, exp_query, weight, alpha = ctx.saved_tensors
        rows: Rows = ctx.rows
        grad_grid = None
        if ctx.needs_input_grad[3]:
            grad_contexts = rows.scatter(grad_context)
            grad_grid = (rows.scatter(alpha).mT @ grad_contexts).to(grid.dtype)
        # If the keys need no gradient, the kernel adds it to a tensor that is not used.
        sums = ctx.sums if ctx.needs_input_grad[0] else {}
        backward_pass = current_backward_pass()
        if backward_pass not in sums:
            forget_afterwards(sums)
            sums[backward_pass] = torch.zeros(
                exp_keys.shape, dtype=torch.float32, device=exp_keys.device
            )
        grad_query, grad_weight = ctx.kernels.attend_backward(
            sums[backward_pass], grad_alpha, grad_context, alpha, exp_keys, grid, exp_query,
            weight, rows.index, rows.captions,
        )  # fmt: skip
        query_dtype, weight_dtype = ctx.dtypes
        return (
            None,
            None,
            None,
            grad_grid,
            grad_query.to(query_dtype),
            grad_weight.to(weight_dtype),
            None,
            None,
        )


def fits(query: Tensor, keys: Tensor, weight: Tensor, grid: Tensor, rows: Rows) -> bool:
    """Whether the kernels support these arguments; the kernels themselves check nothing.

    The reference computes arguments that have to be broadcast or have double precision.
    """
    count, tensors = len(rows.index), (query, weight, grid, rows.index)
    return (
        keys.dim() == grid.dim() == 3
        and query.shape == (count, keys.shape[2])
        and weight.shape == keys.shape[2:]
        and grid.shape[:2] == keys.shape[:2]
        and rows.images == len(keys)
        and torch.float64 not in (query.dtype, weight.dtype)
        and all(tensor.device == keys.device for tensor in tensors)
    )


def additive_attention(
    query: Tensor, keys: AdditiveKeys, weight: Tensor, grid: Tensor, rows: Rows, kernels: Kernels
) -> tuple[Tensor, Tensor]:
    """Compute :func:`captioning.kernels.reference.additive_attention` by compiled kernels."""
    linked, sums = keys.linked()
    alpha, context = _Attend.apply(
        linked, sums, keys.exponentials(), grid, query, weight, rows, kernels
    )
    return alpha, context
