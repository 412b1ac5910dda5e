"""Additive attention by compiled kernels.

The sum inside the tanh has locations x units terms for every word of every caption, so that on a
CPU attention costs its tanh, and not a matrix product. Two identities make it cheap:

* tanh(x + y) = 1 - 2 s with s = 1 / (1 + e^{2x} e^{2y}): the exponentials are taken once for each
  location and once for each word, and the inner loop is a multiplication and a reciprocal.
* The derivative is 4 s (1 - s), so that the backward pass computes s again from the two small
  exponentials instead of keeping captions x locations x units numbers for every word.

All words of a caption share the keys of the image. Autograd would make a tensor of the keys' size
for the gradient of every word and add them up; here each word adds to one sum.
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
"""The gradient with respect to the keys, summed over words, by the backward pass that sums."""


class AdditiveKeys:
    """The keys W_a a_i of some images, and what all attention to them shares.

    Indexing selects images, as it does for a tensor. What is shared is made when it is first
    needed, and again if the keys have been changed in place; copies share nothing.
    """

    def __init__(self, keys: Float[Tensor, "images locations units"]) -> None:
        self._keys = keys
        self._exp: tuple[int, Tensor] | None = None
        self._linked: tuple[int, Tensor, GradientSums] | None = None

    def __reduce__(self) -> tuple[type["AdditiveKeys"], tuple[Tensor]]:
        # What copies and pickles are made of.
        return AdditiveKeys, (self.keys,)

    @property
    def keys(self) -> Float[Tensor, "images locations units"]:
        """The keys, which stay the same tensor."""
        return self._keys

    def __getitem__(self, images: Any) -> "AdditiveKeys":
        """The keys of some images."""
        selected = AdditiveKeys(self.keys[images])
        if self._exp is not None and self._exp[0] == _version(self.keys):
            selected._exp = _version(selected.keys), self._exp[1][images]
        return selected

    def exponentials(self) -> Tensor:
        """e^{2 keys}, in the keys' own type.

        In bfloat16 that is half as much to read, and moves a key by 0.002 at most.
        """
        version = _version(self.keys)
        if self._exp is None or self._exp[0] != version or version < 0:
            self._exp = version, exp2x(self.keys, self.keys.dtype)
        return self._exp[1]

    def linked(self) -> tuple[Tensor | None, GradientSums]:
        """What :class:`_Attend` takes as its keys, and the sums that it adds their gradient to.

        None where no gradient with respect to the keys is needed.
        """
        if not (self.keys.requires_grad and torch.is_grad_enabled()):
            return None, {}
        version = _version(self.keys)
        if self._linked is None or self._linked[0] != version:
            sums: GradientSums = {}
            self._linked = version, _SumOverWords.apply(self.keys, sums), sums
        return self._linked[1:]


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; -1 if that is not known."""
    return -1 if tensor.is_inference() else tensor._version


class _SumOverWords(torch.autograd.Function):
    """The keys as they are; their gradient is the sum that all words have added to."""

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
    """alpha and context of rows of captions; the backward pass adds to the sums of the keys."""

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
        # Without a gradient with respect to the keys, what the kernel adds goes nowhere.
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
    """Whether the kernels take the arguments, of which they check nothing.

    What has to be broadcast, or is of double precision, is for the reference.
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
    """What :func:`captioning.kernels.reference.additive_attention` defines."""
    linked, sums = keys.linked()
    alpha, context = _Attend.apply(
        linked, sums, keys.exponentials(), grid, query, weight, rows, kernels
    )
    return alpha, context
