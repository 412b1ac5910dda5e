"""Clipping the norm of gradients."""

from collections.abc import Iterable

from torch import Tensor, nn

EPSILON = 1e-6
"""What PyTorch adds to the norm before it divides by it."""


def clip_gradient_norm(parameters: Iterable[Tensor], max_norm: float) -> None:
    """Scale the gradients so that their common norm is at most ``max_norm`` (Pascanu et al. 2013).

    The result is that of :func:`torch.nn.utils.clip_grad_norm_`, which also passes over gradients
    that need no scaling, and multiplies them by 1; in most steps none needs it. On a GPU, looking
    at the norm would take longer than this pass.

    Args:
        parameters: whose gradients are scaled in place; those without a gradient are left out.
        max_norm: the largest norm of all gradients together.
    """
    parameters = list(parameters)
    gradients = [each.grad for each in parameters if each.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if norm.device.type == "cpu" and norm + EPSILON <= max_norm:
        return
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
