"""Dropout on a CPU: that of PyTorch, in all that can be seen."""

import pytest
import torch

from captioning.kernels.backend import use_backend
from captioning.kernels.ops import Dropout


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_is_dropped_and_the_mean_is_kept(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dropped = Dropout(p)(torch.ones(1001, 999, dtype=dtype))
    assert dropped.dtype == dtype
    assert len(dropped.unique()) == 2
    share = dropped.eq(0).double().mean()
    assert share.item() == pytest.approx(p, abs=0.004)
    assert dropped.double().mean().item() == pytest.approx(1, abs=0.01)


def test_every_byte_is_random() -> None:
    """Each of eight neighbours is dropped as often, and as often together as chance has it."""
    torch.manual_seed(0)
    dropped = Dropout(0.5)(torch.ones(100_000, 8)).eq(0).double()
    assert dropped.mean(0).sub(0.5).abs().max() < 0.01
    together = dropped.T @ dropped / len(dropped) - torch.eye(8) / 4
    assert together.sub(0.25).abs().max() < 0.01


def test_gradients_pass_where_numbers_stay() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 7, requires_grad=True)
    dropped = Dropout(0.5)(x)
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    torch.testing.assert_close(gradient, dropped.ne(0) * 2.0)


def test_the_seed_decides() -> None:
    x = torch.ones(50)
    first, second = (torch.manual_seed(3), Dropout(0.5)(x))[1], Dropout(0.5)(x)
    torch.manual_seed(3)
    assert Dropout(0.5)(x).equal(first)
    assert not second.equal(first)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_evaluation_changes_nothing(p: float) -> None:
    x = torch.randn(10)
    assert Dropout(p).eval()(x).equal(x)
    assert Dropout(0.0)(x).equal(x)
    assert Dropout(1.0)(x).eq(0).all()


def test_under_backend_torch_it_is_pytorchs_own() -> None:
    x = torch.ones(1000)
    with use_backend("torch"):
        torch.manual_seed(0)
        ours = Dropout(0.3)(x)
    torch.manual_seed(0)
    assert ours.equal(torch.nn.functional.dropout(x, 0.3))
