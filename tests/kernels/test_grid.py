"""Grids and queries as attention is given them, against torch in double precision."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from captioning.kernels.grid import LIMIT, exp_twice, standardize


@pytest.fixture(params=["C", "torch"], autouse=True)
def way(request: pytest.FixtureRequest, use: Callable[[str], None]) -> None:
    """Let each test run on every way to compute."""
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
    ours, mean = standardize(grid, nn.LayerNorm(channels, elementwise_affine=False), dtype)
    exact = nn.functional.layer_norm(grid.double(), [channels])
    assert ours.dtype == dtype
    assert mean.dtype == torch.float32
    tolerance = max(torch.finfo(dtype).eps, 1e-5)
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=1e-5)
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-5, atol=1e-5)


def test_a_part_of_a_larger_grid_and_one_without_contrast() -> None:
    grid = normal(4, 9, 6, 5).transpose(1, 2)[:, :, 2]  # 4 x 6 x 5, no row beside the next
    norm = nn.LayerNorm(5, elementwise_affine=False)
    torch.testing.assert_close(standardize(grid, norm, torch.float32)[0], norm(grid))
    even = torch.full((2, 3, 5), 4.0)
    assert not standardize(even, norm, torch.float32)[0].any()


def test_another_norm_and_a_grid_that_learns() -> None:
    grid = normal(2, 3, 16).requires_grad_()
    same, mean = standardize(grid, nn.Identity(), torch.float32)
    assert same.equal(grid)
    torch.testing.assert_close(mean, grid.mean(1))
    norm = nn.LayerNorm(16, elementwise_affine=False)
    (gradient,) = torch.autograd.grad(standardize(grid, norm, torch.float32)[0].pow(3).sum(), grid)
    (wanted,) = torch.autograd.grad(norm(grid).pow(3).sum(), grid)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 16, 37])
def test_exponentials_of_what_is_clamped(
    size: int, wanted: torch.dtype, given: torch.dtype
) -> None:
    whole = (12 * normal(2, 6, 2 * size)).to(given)
    assert whole.abs().max() > LIMIT
    for x in (whole, whole[..., :size], whole[0]):  # columns of a larger product, too
        exact = (2 * x.double().clamp(-LIMIT, LIMIT)).exp()
        ours = exp_twice(x, wanted)
        assert ours.dtype == wanted
        rounding = 0.51 * torch.finfo(wanted).eps + 5e-6  # e^44 in single precision
        torch.testing.assert_close(ours.double(), exact, rtol=rounding, atol=0)


def test_what_is_no_number_stays_none() -> None:
    x = normal(3, 20)
    x[1, 4] = float("nan")
    assert exp_twice(x).isnan().equal(x.isnan())
    norm = nn.LayerNorm(20, elementwise_affine=False)
    found = standardize(x[None], norm, torch.float32)[0]
    assert found.isnan().any(-1).tolist() == [[False, True, False]]
