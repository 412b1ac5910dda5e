"""Additive attention against v . tanh(keys + query) in float64, as the paper has it."""

import pytest
import torch
from torch import Tensor

from captioning.models import attention
from captioning.models.attention import LIMIT, AdditiveAttention

IMAGES, CAPTIONS, LOCATIONS, UNITS = 7, 3, 5, 6


def textbook(keys: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    """Eq. 4: the scores e of B x K captions at P locations, in double precision."""
    hidden = keys.double()[:, None] + query.double()[:, :, None]
    return hidden.tanh() @ weight.double()


def blockwise(keys: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    exp_keys = (2 * keys.detach().float().clamp(-LIMIT, LIMIT)).exp()
    scores: Tensor = attention._AdditiveScores.apply(keys, exp_keys, query, weight)
    return scores


def projections(scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Leaves that want gradients: keys and queries in +-scale, and weights."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1).mul_(scale).requires_grad_()

    weight = torch.randn(UNITS, generator=generator).requires_grad_()
    return leaf(IMAGES, LOCATIONS, UNITS), leaf(IMAGES, CAPTIONS, UNITS), weight


def gradients(scores: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Those of an arbitrary weighted sum of the scores."""
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(scores.shape, generator=generator).to(scores.dtype)
    return torch.autograd.grad((scores * upstream).sum(), leaves)


@pytest.fixture(params=[1, 2, 3, IMAGES, 100])
def images_per_block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    image_bytes = 4 * CAPTIONS * LOCATIONS * UNITS
    monkeypatch.setattr(attention._AdditiveScores, "BLOCK_BYTES", image_bytes * request.param)
    return int(request.param)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_scores_and_gradients_are_the_textbooks(images_per_block: int, scale: float) -> None:
    leaves = projections(scale)
    scores, expected = blockwise(*leaves), textbook(*leaves)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=5e-6)
    for ours, theirs in zip(gradients(scores, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_single_image_takes_one_block_of_the_true_size() -> None:
    """196 locations, 512 units and 5 captions: the size that BLOCK_BYTES was chosen for."""
    keys, query, weight = torch.randn(3, 196, 512), torch.randn(3, 5, 512), torch.randn(512)
    exp_keys, exp_query = torch.empty(3, 196, 512), torch.empty(3, 5, 512)
    assert attention._AdditiveScores.images_per_block(exp_keys, exp_query) == 1
    expected = textbook(keys, query, weight)
    torch.testing.assert_close(
        blockwise(keys, query, weight).double(), expected, rtol=1e-4, atol=2e-4
    )


@pytest.mark.parametrize(("most_x", "most_y"), [(100, 31), (31, 100), (40, 40)])
def test_large_values_saturate_and_cancel_exactly(most_x: int, most_y: int) -> None:
    """Every pair of signs and sizes, while one side is below 31 or both are below LIMIT."""
    keys = torch.arange(-most_x, most_x + 1.0)[None, :, None].requires_grad_()
    query = torch.arange(-most_y, most_y + 1.0)[None, :, None].requires_grad_()
    leaves = keys, query, torch.ones(1, requires_grad=True)
    scores, expected = blockwise(*leaves), textbook(*leaves)
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=2e-5)
    for ours, theirs in zip(gradients(scores, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [50.0, 100.0, 1e4, float("inf")])
def test_no_value_is_too_large(scale: float) -> None:
    """Beyond LIMIT a value counts as LIMIT, and nothing becomes NaN or infinite."""
    keys, query, weight = projections(1.0)
    with torch.no_grad():
        keys *= scale
        query *= scale
    scores = blockwise(keys, query, weight)
    within = keys.clamp(-LIMIT, LIMIT), query.clamp(-LIMIT, LIMIT)
    torch.testing.assert_close(scores.double(), textbook(*within, weight), rtol=1e-5, atol=1e-5)
    for gradient in gradients(scores, (keys, query, weight)):
        assert gradient.isfinite().all()


def test_the_kernels_that_are_compiled_equal_the_blocks() -> None:
    keys, query, weight = (leaf.detach() for leaf in projections(3.0))
    exp_keys, exp_query = (2 * keys).exp(), (2 * query).exp()
    inputs = exp_keys, exp_query, weight
    scores = attention._scores(*inputs)
    torch.testing.assert_close(attention._fused_scores(*inputs), scores, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(scores)
    fused = attention._fused_gradients(grad, *inputs)
    blocks = attention._gradients(grad, *inputs)
    for ours, theirs in zip(fused, blocks, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("captions", [1, 4])
def test_attention_is_the_softmax_of_the_scores_of_the_projected_grid(captions: int) -> None:
    torch.manual_seed(0)
    module = AdditiveAttention(channels=8, attention_dim=UNITS)
    grid, query = torch.randn(2, LOCATIONS, 8), torch.randn(2, captions, UNITS)
    weights = module(query, module.project(grid))
    assert weights.shape == (2, captions, LOCATIONS)
    for image in range(2):
        for caption in range(captions):
            scores = [
                module.score.double()
                @ (
                    module.key.weight.double() @ location.double()
                    + module.key.bias.double()
                    + query[image, caption].double()
                ).tanh()
                for location in grid[image]
            ]
            expected = torch.stack(scores).softmax(0)
            torch.testing.assert_close(
                weights[image, caption].double(), expected, rtol=1e-5, atol=1e-6
            )
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, captions))


def test_every_parameter_and_input_gets_its_gradient() -> None:
    torch.manual_seed(0)
    module = AdditiveAttention(channels=8, attention_dim=UNITS)
    grid = torch.randn(2, LOCATIONS, 8, requires_grad=True)
    query = torch.randn(2, 3, UNITS, requires_grad=True)
    leaves = grid, query, *module.parameters()
    weights = module(query, module.project(grid))
    expected = textbook(
        grid.double() @ module.key.weight.double().T + module.key.bias.double(),
        query,
        module.score,
    ).softmax(-1)
    for ours, theirs in zip(gradients(weights, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    leaves = tuple(leaf.detach().to(dtype).requires_grad_() for leaf in projections(3.0))
    with torch.autocast("cpu", dtype=dtype):
        scores = blockwise(*leaves)
    expected = textbook(*leaves)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-5)
    rounding = torch.finfo(dtype).eps
    for ours, theirs in zip(gradients(scores, leaves), gradients(expected, leaves), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=2 * rounding, atol=1e-4)


def test_no_images_have_no_attention() -> None:
    module = AdditiveAttention(channels=8, attention_dim=UNITS)
    weights = module(torch.empty(0, 2, UNITS), module.project(torch.empty(0, LOCATIONS, 8)))
    assert weights.shape == (0, 2, LOCATIONS)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    leaves = projections()
    (first, *_) = torch.autograd.grad(blockwise(*leaves).square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
