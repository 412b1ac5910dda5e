"""Weight gradients of linear layers that are called in a loop, computed by one product per weight.

Autograd computes the gradient with respect to a weight at every word of a caption: one small
product, and one pass over a tensor of the weight's size, for each word. Here each call records its
input and the gradient with respect to its output, and one product of all of them is computed when
the backward pass reaches the weight. In bfloat16, the result is also rounded once instead of at
every word.

The function ``torch.nn.functional.linear`` is intercepted, not the layers, so that subclasses,
hooks and parametrisations of layers work as usual. Only products with a matrix that is itself a
parameter are deferred. Autograd handles all others: weights that a parametrisation computes, tensor
subclasses, ``torch.func``, and calls that activation checkpointing repeats.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captioning.kernels.backend import current_backend, is_transformed

T = TypeVar("T")

Record = dict[int, list[tuple[Tensor, Tensor]]]
"""Input and gradient with respect to the output of each call, by backward pass."""


def current_backward_pass() -> int:
    """A number that identifies the current backward pass.

    It is the key under which the nodes of a backward pass store intermediate results for each
    other, so that two backward passes, or one that stops early, never use each other's results.
    """
    return torch._C._current_graph_task_id()


def forget_afterwards(put_aside: dict[int, Any]) -> None:
    """At the end of this backward pass, delete its intermediate results that no node has used.

    Such results remain if gradients with respect to some of the tensors only are requested.
    """
    backward_pass = current_backward_pass()
    engine = torch.autograd.Variable._execution_engine
    engine.queue_callback(lambda: put_aside.pop(backward_pass, None))


def refuse_second_derivative() -> None:
    """Refuse a backward pass with ``create_graph=True``.

    The intermediate results that nodes store for each other are not part of the autograd graph, so
    that a second derivative would silently lack terms.

    Raises:
        RuntimeError: ``create_graph=True`` was given.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "create_graph=True: the compiled kernels have no second derivative; use backend=torch"
        )


def first_derivative_only(backward: Callable[..., T]) -> Callable[..., T]:
    """Decorate the backward pass of an autograd function, so that it refuses second derivatives.

    PyTorch's own ``once_differentiable`` accepts ``create_graph=True`` and fails only at the second
    derivative, with a message that names no remedy.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Tensor | None) -> T:
        refuse_second_derivative()
        return backward(ctx, *grads)

    return checked


KERNEL_TYPES = (torch.float32, torch.bfloat16)
ORDINARY = (Tensor, nn.Parameter)


class DeferredWeightGradients(TorchFunctionMode):
    """Within the block, the gradient of each weight is computed by one product for all calls."""

    def __init__(self) -> None:
        super().__init__()
        self._shared: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear and self._is_deferred(*args, **(kwargs or {})):
            return self._linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _is_deferred(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
        """Whether the weight gradient of a call is needed and can be computed later."""
        if not (weight.requires_grad and torch.is_grad_enabled()) or current_backend() == "torch":
            return False
        leaves = (weight,) if bias is None else (weight, bias)
        if not all(type(each) in ORDINARY and each.is_leaf for each in leaves):
            return False
        types_fit = input.dtype == weight.dtype or (
            torch.is_autocast_enabled(input.device.type) and input.dtype in KERNEL_TYPES
        )
        return (
            types_fit
            and weight.dtype in KERNEL_TYPES
            and type(input) in ORDINARY
            and input.dim() > 1
            and weight.dim() == 2
            and not is_transformed()
            # Activation checkpointing repeats a call outside of this block, where it would save
            # other tensors than here.
            and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
        )

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        device = input.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        versions = [
            None if each is None else (id(each), each._version, each.data_ptr())
            for each in (weight, bias)
        ]
        key = *versions, dtype
        if key not in self._shared:
            record: Record = {}
            shared = _Weights.apply(weight, bias, dtype, record)
            # A reference to the originals ensures that no other tensor gets their ids.
            self._shared[key] = *shared, record, weight, bias
        shared_weight, shared_bias, record, *_ = self._shared[key]
        output: Tensor = _Product.apply(input, shared_weight, shared_bias, record)
        return output


class _Weights(torch.autograd.Function):
    """Weight and bias in the type of the products; the record gives their gradients."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, record: Record
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.record, ctx.dtypes = record, (weight.dtype, None if bias is None else bias.dtype)
        if dtype == weight.dtype:
            return weight.view_as(weight), None if bias is None else bias.view_as(bias)
        return weight.to(dtype), None if bias is None else bias.to(dtype)

    @staticmethod
    @first_derivative_only
    def backward(
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        calls = ctx.record.pop(current_backward_pass(), None)
        if calls is None:
            return None, None, None, None
        inputs, outputs = (torch.cat(parts) for parts in zip(*calls, strict=True))
        weight_dtype, bias_dtype = ctx.dtypes
        grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_weight = (outputs.mT @ inputs).to(weight_dtype)
        if ctx.needs_input_grad[1]:
            grad_bias = outputs.sum(0).to(bias_dtype)
        return grad_weight, grad_bias, None, None


class _Product(torch.autograd.Function):
    """The product x W' + b; its backward pass records x and the gradient of the output.

    :class:`_Weights` computes the gradients with respect to W and b from the record.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, record: Record) -> Tensor:
        ctx.record, ctx.dtype = record, x.dtype
        x = x.to(weight.dtype)
        ctx.save_for_backward(x, weight)
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            backward_pass = current_backward_pass()
            if backward_pass not in ctx.record:
                ctx.record[backward_pass] = []
                forget_afterwards(ctx.record)
            # Detached, because the graph refers to the record: a reference back would be a cycle.
            call = x.detach().flatten(0, -2), grad.flatten(0, -2)
            ctx.record[backward_pass].append(call)
        grad_x = (grad @ weight).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None
