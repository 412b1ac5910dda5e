"""Additive attention against the paper's equations in float64: in C, in torch and in Triton."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from captioning.kernels.grid import LIMIT
from captioning.models.attention import additive as attention
from captioning.models.attention.additive import AdditiveAttention, Rows

pytestmark = pytest.mark.filterwarnings("ignore:(invalid|overflow).*:RuntimeWarning:triton")

IMAGES, CAPTIONS, LOCATIONS, UNITS, CHANNELS = 7, 3, 5, 6, 8

Leaves = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(params=["C", "torch", "torch, one image a block", "Triton"], autouse=True)
def way(
    request: pytest.FixtureRequest, use: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> str:
    """Let each test run on every way to compute."""
    use(request.param.partition(",")[0])
    if request.param == "torch, one image a block":
        monkeypatch.setattr(attention, "BLOCK_BYTES", 1)
    return str(request.param)


def textbook(keys: Tensor, grid: Tensor, query: Tensor, weight: Tensor, rows: Rows) -> Tensor:
    """Eq. 4 to 6, row by row: alpha and the context in one tensor, rows x (P + C)."""
    found = []
    for place, of_row in zip(rows.place.tolist(), query.double(), strict=True):
        image = place // rows.captions
        hidden = keys[image].double() + of_row
        alpha = (hidden.tanh() @ weight.double()).softmax(0)
        found.append(torch.cat([alpha, alpha @ grid[image].double()]))
    return torch.stack(found)


def attend(keys: Tensor, grid: Tensor, query: Tensor, weight: Tensor, rows: Rows) -> Tensor:
    """The same by the module, whose projection of the grid is left out."""
    channels, units = grid.shape[2], weight.shape[0]
    module = AdditiveAttention(channels, units)
    del module.score
    module.score = weight  # type: ignore[assignment]
    module.key.forward = lambda _: keys  # type: ignore[method-assign]
    return torch.cat(module(query, module.project(grid), rows), 1)


def leaves_of(
    rows: int, scale: float = 1.0, *, images: int = IMAGES, units: int = UNITS, seed: int = 0
) -> Leaves:
    """Keys and queries in +-scale, grids and weights; they want gradients."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1).mul_(scale).requires_grad_()

    return (
        leaf(images, LOCATIONS, units, scale=scale),
        leaf(images, LOCATIONS, CHANNELS),
        leaf(rows, units, scale=scale),
        leaf(units, scale=3.0),
    )


def gradients(output: Tensor, leaves: Leaves) -> tuple[Tensor, ...]:
    """Those of an arbitrary weighted sum of the output."""
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((output * upstream.to(output.dtype)).sum(), leaves)


ROWS = {
    "all in order": Rows(torch.arange(IMAGES * CAPTIONS), CAPTIONS),
    "shuffled, some missing": Rows(torch.tensor([20, 3, 4, 0, 11, 9, 5, 19]), CAPTIONS),
    "one": Rows(torch.tensor([8]), CAPTIONS),
    "eighteen an image": Rows(torch.arange(IMAGES * 18).view(-1, 6).T.flatten(), 18),
}


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("rows", ROWS.values(), ids=list(ROWS))
def test_attention_and_gradients_are_the_textbooks(rows: Rows, scale: float) -> None:
    leaves = leaves_of(len(rows.place), scale)
    ours, expected = attend(*leaves, rows), textbook(*leaves, rows)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=5e-6)
    for got, wanted in zip(gradients(ours, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("units", [1, 15, 16, 17, 64])
def test_any_number_of_units(units: int) -> None:
    """Sixteen at a time are computed, and what is left."""
    rows = ROWS["shuffled, some missing"]
    leaves = leaves_of(len(rows.place), units=units)
    ours, expected = attend(*leaves, rows), textbook(*leaves, rows)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=5e-6)
    for got, wanted in zip(gradients(ours, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)


def test_the_true_size() -> None:
    """196 locations of 512 numbers, 512 units and 5 captions an image."""
    torch.manual_seed(0)
    rows = Rows.all(3, 5, torch.device("cpu"))
    keys, grid = torch.randn(3, 196, 512), torch.randn(3, 196, 512)
    query, weight = torch.randn(15, 512), torch.randn(512)
    torch.testing.assert_close(
        attend(keys, grid, query, weight, rows).double(),
        textbook(keys, grid, query, weight, rows),
        rtol=1e-3,
        atol=1e-4,
    )


def test_a_word_later_adds_its_part_of_the_gradients() -> None:
    """Two words of one projection, the second of fewer rows, and then both once more."""
    rows = ROWS["shuffled, some missing"]
    keys, grid, query, weight = leaves = leaves_of(len(rows.place))
    module = AdditiveAttention(CHANNELS, UNITS)
    del module.score
    module.score = weight  # type: ignore[assignment]
    module.key.forward = lambda _: keys  # type: ignore[method-assign]
    memory = module.project(grid)
    both = torch.cat(
        [torch.cat(module(2 * query[:n], memory, rows.first(n)), 1) for n in (len(query), 3)]
    )
    expected = torch.cat(
        [textbook(keys, grid, 2 * query[:n], weight, rows.first(n)) for n in (len(query), 3)]
    )
    wanted = gradients(expected, leaves)
    upstream = torch.randn(both.shape, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        got = torch.autograd.grad((both * upstream).sum(), leaves, retain_graph=True)
        for ours, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("most_x", "most_y"), [(100, 13), (13, 100), (22, 22)])
def test_large_values_saturate_and_cancel_exactly(most_x: int, most_y: int) -> None:
    """Every pair of signs and sizes, while one side is below 13 or both are below LIMIT."""
    keys = torch.arange(-most_x, most_x + 1.0)[None, :, None].requires_grad_()
    query = torch.arange(-most_y, most_y + 1.0)[:, None].requires_grad_()
    grid = torch.randn(1, len(keys[0]), CHANNELS, requires_grad=True)
    rows = Rows.all(1, len(query), query.device)
    leaves = keys, grid, query, torch.ones(1, requires_grad=True)
    ours, expected = attend(*leaves, rows), textbook(*leaves, rows)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=2e-5)
    for got, wanted in zip(gradients(ours, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [50.0, 100.0, 1e4, float("inf")])
def test_no_value_is_too_large(scale: float) -> None:
    """Beyond LIMIT a value counts as LIMIT, and nothing becomes NaN or infinite."""
    rows = ROWS["all in order"]
    keys, grid, query, weight = leaves = leaves_of(len(rows.place))
    with torch.no_grad():
        keys *= scale
        query *= scale
    ours = attend(*leaves, rows)
    within = keys.clamp(-LIMIT, LIMIT), grid, query.clamp(-LIMIT, LIMIT), weight
    torch.testing.assert_close(ours.double(), textbook(*within, rows), rtol=1e-5, atol=1e-5)
    for gradient in gradients(ours, leaves):
        assert gradient.isfinite().all()


def test_what_is_no_number_is_not_hidden() -> None:
    """Or training that diverges would not be noticed."""
    rows = ROWS["all in order"]
    keys, grid, query, weight = leaves_of(len(rows.place))
    with torch.no_grad():
        query[4, 2] = float("nan")
        keys[5, 1, 3] = float("nan")
    found = attend(keys, grid, query, weight, rows).isnan().any(1)
    assert found.nonzero().flatten().tolist() == [4, 15, 16, 17]


def test_the_grid_is_projected_by_the_modules_own_layer() -> None:
    torch.manual_seed(0)
    module = AdditiveAttention(CHANNELS, UNITS)
    rows = ROWS["shuffled, some missing"]
    grid = torch.randn(IMAGES, LOCATIONS, CHANNELS, requires_grad=True)
    query = torch.randn(len(rows.place), UNITS, requires_grad=True)
    leaves = grid, query, *module.parameters()
    ours = torch.cat(module(query, module.project(grid), rows), 1)
    keys = grid.double() @ module.key.weight.double().T + module.key.bias.double()
    expected = textbook(keys, grid, query, module.score, rows)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)
    for got, wanted in zip(gradients(ours, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    rows = ROWS["all in order"]
    keys, grid, query, weight = leaves_of(len(rows.place), 3.0)
    halves = (leaf.detach().to(dtype).requires_grad_() for leaf in (keys, query))
    keys, query = halves
    leaves = keys, grid, query, weight
    with torch.autocast("cpu", dtype=dtype):
        ours = attend(*leaves, rows)
    expected = textbook(*leaves, rows)
    assert ours.dtype == torch.float32
    rounding = torch.finfo(dtype).eps
    alpha, context = ours.double().split([LOCATIONS, CHANNELS], 1)
    wanted_alpha, wanted_context = expected.split([LOCATIONS, CHANNELS], 1)
    torch.testing.assert_close(alpha, wanted_alpha, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(context, wanted_context, rtol=2 * rounding, atol=2 * rounding)
    for got, wanted in zip(gradients(ours, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=2 * rounding, atol=4 * rounding)


@pytest.mark.parametrize("rows", ROWS.values(), ids=list(ROWS))
def test_a_grid_in_bf16_is_read_as_it_is(rows: Rows) -> None:
    """The keys' exponentials are rounded, which moves a key by 2^-9 at most; the grid is exact."""
    keys, grid, query, weight = leaves_of(len(rows.place), units=17)
    leaves = keys, grid.detach().bfloat16().requires_grad_(), query, weight
    rounded = (2 * keys.detach()).exp().bfloat16().double().log() / 2
    exact = leaves[1].detach().double().requires_grad_()
    seen = rounded.requires_grad_(), exact, query, weight
    ours, expected = attend(*leaves, rows), textbook(*seen, rows)
    eps = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(ours.double(), expected, rtol=eps, atol=eps)
    assert (rounded - keys).abs().max() < 2**-9
    for got, wanted in zip(gradients(ours, leaves), gradients(expected, seen), strict=True):
        torch.testing.assert_close(got.double(), wanted.double(), rtol=4 * eps, atol=4 * eps)


def test_no_captions_have_no_attention() -> None:
    module = AdditiveAttention(CHANNELS, UNITS)
    memory = module.project(torch.empty(0, LOCATIONS, CHANNELS))
    none = Rows.all(0, 2, torch.device("cpu"))
    alpha, context = module(torch.empty(0, UNITS), memory, none)
    assert alpha.shape == (0, LOCATIONS)
    assert context.shape == (0, CHANNELS)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    rows = ROWS["all in order"]
    leaves = leaves_of(len(rows.place))
    with pytest.raises(RuntimeError, match="have no derivative"):
        torch.autograd.grad(attend(*leaves, rows).square().sum(), leaves, create_graph=True)
