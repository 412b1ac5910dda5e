"""Ops give the same results whatever the defaults of torch's constructors are."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from right_support import TOKENS, small_decoder, small_grid
from torch import Tensor

from captioning.kernels import ops


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def results(*defaults: str, bf16: bool = False) -> list[Tensor]:
    """What all ops compute of the same arguments, and gradients, under other defaults."""
    decoder = small_decoder(recurrent_dropout=0.5).train()
    grid, logits = small_grid(), small_grid()[0]
    banned = torch.tensor([[1], [2], [0]])
    targets = torch.tensor([1, 0, 4])
    torch.manual_seed(0)
    with ExitStack() as stack:
        if "type" in defaults:
            stack.enter_context(default_type(torch.float64))
        if "device" in defaults:
            stack.enter_context(torch.device("meta"))
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=bf16))
        output = decoder(grid, TOKENS)
        loss = ops.cross_entropy(output.logits, output.targets, 0.1)
        loss.backward()
        with torch.no_grad():
            of_logits = [
                ops.cross_entropy(logits, targets, 0.1), ops.log_sum_exp(logits),
                *ops.topk(logits, 2), ops.mask_tokens(logits.clone(), banned),
                *ops.standardize(grid),
            ]  # fmt: skip
    gradients = [parameter.grad for parameter in decoder.parameters()]
    return [output.logits, output.attention, loss, *of_logits, *gradients]


@pytest.mark.parametrize("implementation", ["C", "torch"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("default", ["type", "device"])
def test_default_types_and_devices_change_nothing(
    implementation: str, bf16: bool, default: str, use: object
) -> None:
    use(implementation)
    for found, expected in zip(results(default, bf16=bf16), results(bf16=bf16), strict=True):
        # With a default device, torch observes operations, and words are computed one by one.
        tolerance = 0.05 if bf16 and default == "device" else 1e-6
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
