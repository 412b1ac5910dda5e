"""Gradients are clipped as by PyTorch."""

import pytest
import torch
from torch import Tensor, nn

from captioning.training.clipping import clip_gradient_norm


def parameters_of(scale: float) -> list[Tensor]:
    """Parameters whose gradients have a common norm of ``scale``; one has no gradient."""
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(size, generator=generator) for size in ((3, 4), (5,))]
    norm = torch.cat([each.flatten() for each in gradients]).norm()
    found = [nn.Parameter(torch.zeros_like(each)) for each in gradients]
    for parameter, gradient in zip(found, gradients, strict=True):
        parameter.grad = scale * gradient / norm
    return [*found, nn.Parameter(torch.zeros(2))]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.9999, 2.0, 2.0001, 30.0, float("inf"), float("nan")])
def test_gradients_are_those_of_pytorchs_clipping(scale: float) -> None:
    ours, theirs = parameters_of(scale), parameters_of(scale)
    clip_gradient_norm(iter(ours), 2.0)
    nn.utils.clip_grad_norm_(theirs, 2.0)
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-6, atol=0, equal_nan=True)
    assert ours[2].grad is None


def test_small_gradients_are_not_touched() -> None:
    parameters = parameters_of(0.5)
    versions = [each.grad._version for each in parameters[:2] if each.grad is not None]
    clip_gradient_norm(parameters, 2.0)
    assert versions == [each.grad._version for each in parameters[:2] if each.grad is not None]
