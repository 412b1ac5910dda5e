"""Standardised grids and exponentials against PyTorch in double precision."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from captioning.kernels.ops import standardize
from captioning.kernels.preparation import LIMIT, exp2x


@pytest.fixture(params=["C", "torch"], autouse=True)
def implementation(request: pytest.FixtureRequest, use: Callable[[str], None]) -> None:
    """Let each test run with each implementation."""
    use(request.param)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("images", "channels"), [(1, 5), (3, 16), (20, 40), (2, 512)])
def test_each_location_is_standardised_by_itself(
    images: int, channels: int, dtype: torch.dtype, given: torch.dtype
) -> None:
    grid = (3 * normal(images, 7, channels).relu() + 2).to(given)
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)
    with autocast:
        ours, mean = standardize(grid)
    exact = nn.functional.layer_norm(grid.double(), [channels])
    assert ours.dtype == dtype
    assert mean.dtype == torch.float32
    tolerance = max(torch.finfo(dtype).eps, 1e-5)
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=1e-5)
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-5, atol=1e-5)


def test_a_part_of_a_larger_grid_and_one_without_contrast() -> None:
    grid = normal(4, 9, 6, 5).transpose(1, 2)[:, :, 2]  # 4 x 6 x 5, no row beside the next
    torch.testing.assert_close(standardize(grid)[0], nn.functional.layer_norm(grid, [5]))
    even = torch.full((2, 3, 5), 4.0)
    assert not standardize(even)[0].any()


def test_epsilon_is_added_to_the_variance() -> None:
    grid = normal(2, 3, 16) / 100
    torch.testing.assert_close(
        standardize(grid, 0.01)[0], nn.functional.layer_norm(grid, [16], eps=0.01)
    )


def test_more_channels_than_the_c_function_takes() -> None:
    grid = normal(1, 2, 5000)
    ours, mean = standardize(grid)
    torch.testing.assert_close(ours, nn.functional.layer_norm(grid, [5000]))
    torch.testing.assert_close(mean, ours.mean(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_grid_that_learns(dtype: torch.dtype) -> None:
    grid = normal(2, 3, 16).to(dtype).requires_grad_()
    for place in (0, 1):
        (gradient,) = torch.autograd.grad(standardize(grid)[place].pow(3).sum(), grid)
        exact = nn.functional.layer_norm(grid, [16])
        exact = exact if place == 0 else exact.mean(1)
        (wanted,) = torch.autograd.grad(exact.pow(3).sum(), grid)
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 16, 37])
def test_exponentials_of_limited_numbers(
    size: int, wanted: torch.dtype, given: torch.dtype
) -> None:
    whole = (12 * normal(2, 6, 2 * size)).to(given)
    assert whole.abs().max() > LIMIT
    for x in (whole, whole[..., :size], whole[0]):  # columns of a larger product, too
        exact = (2 * x.double().clamp(-LIMIT, LIMIT)).exp()
        ours = exp2x(x, wanted)
        assert ours.dtype == wanted
        rounding = 0.51 * torch.finfo(wanted).eps + 5e-6  # e^44 in single precision
        torch.testing.assert_close(ours.double(), exact, rtol=rounding, atol=0)


def test_nan_stays_nan() -> None:
    x = normal(3, 20)
    x[1, 4] = float("nan")
    assert exp2x(x).isnan().equal(x.isnan())
    assert standardize(x[None])[0].isnan().any(-1).tolist() == [[False, True, False]]
