"""Linear layers in a loop over words, whose weights get their gradients once, for all words.

Left to itself, autograd makes the gradient of a weight at every word: as many small products, and
as many passes over a tensor of the weight's size to add them up, as there are words. Here a word's
input and the gradient of its output are kept, and one product of all of them is made at the end;
in half precision that also rounds once, and not at every word.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Record = list[tuple[Tensor, Tensor]]
"""The input and the gradient of the output, of each use of a layer."""


def refuse_second_derivative() -> None:
    """What was put aside for the end of the backward pass is no part of a graph.

    Raises:
        RuntimeError: the backward pass was asked for its own graph.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("create_graph=True: gradients of the recurrence have no derivative")


class _Parameters(torch.autograd.Function):
    """Weight and bias as the products take them; their gradients are made from the record."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, record: Record
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.record, ctx.dtype = record, weight.dtype
        if dtype == weight.dtype:
            return weight.view_as(weight), None if bias is None else bias.view_as(bias)
        return weight.to(dtype), None if bias is None else bias.to(dtype)

    @staticmethod
    def backward(ctx: Any, *none: None) -> tuple[Tensor, Tensor | None, None, None]:
        refuse_second_derivative()
        inputs, gradients = (torch.cat(parts) for parts in zip(*ctx.record, strict=True))
        ctx.record.clear()  # for another backward pass
        by_weight = (gradients.mT @ inputs).to(ctx.dtype)
        by_bias = gradients.sum(0).to(ctx.dtype) if ctx.needs_input_grad[1] else None
        return by_weight, by_bias, None, None


class _Product(torch.autograd.Function):
    """x W' + b; the backward pass keeps what the gradients of W and b are made of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, record: Record) -> Tensor:
        ctx.record, ctx.dtype = record, x.dtype
        x = x.to(weight.dtype)
        ctx.save_for_backward(x, weight)
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight = ctx.saved_tensors
        ctx.record.append((x, gradient))
        return (gradient @ weight).to(ctx.dtype), None, None, None


class Unrolled:
    """Applies linear layers again and again within one forward pass: ``unrolled(layer, x)``.

    Hooks of the layers are not called.
    """

    def __init__(self) -> None:
        self._layers: dict[nn.Linear, tuple[Tensor, Tensor | None, Record]] = {}

    def __call__(
        self, layer: nn.Linear, x: Float[Tensor, "rows inputs"]
    ) -> Float[Tensor, "rows outputs"]:
        """What ``layer(x)`` is, under autocast as well."""
        if layer not in self._layers:
            device, record = x.device.type, Record()
            autocast = torch.is_autocast_enabled(device)
            dtype = torch.get_autocast_dtype(device) if autocast else layer.weight.dtype
            parameters = _Parameters.apply(layer.weight, layer.bias, dtype, record)
            self._layers[layer] = (*parameters, record)
        product: Tensor = _Product.apply(x, *self._layers[layer])
        return product
