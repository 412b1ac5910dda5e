"""Additive attention against the paper's equations in double precision, by each implementation."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from captioning.kernels.ops import AdditiveKeys, Rows, additive_attention
from captioning.kernels.preparation import LIMIT

pytestmark = pytest.mark.filterwarnings("ignore:(invalid|overflow).*:RuntimeWarning:triton")

IMAGES, CAPTIONS, LOCATIONS, UNITS, CHANNELS = 7, 3, 5, 6, 8

Leaves = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(params=["C", "torch", "Triton"], autouse=True)
def implementation(request: pytest.FixtureRequest, use: Callable[[str], None]) -> str:
    """Let each test run with each implementation."""
    use(request.param)
    return str(request.param)


def textbook(keys: Tensor, grid: Tensor, query: Tensor, weight: Tensor, rows: Rows) -> Tensor:
    """Eq. 4 to 6, row by row: alpha and the context in one tensor, rows x (P + C)."""
    found = []
    for index, of_row in zip(rows.index.tolist(), query.double(), strict=True):
        image = index // rows.captions
        hidden = keys[image].double() + of_row
        alpha = (hidden.tanh() @ weight.double()).softmax(0)
        found.append(torch.cat([alpha, alpha @ grid[image].double()]))
    return torch.stack(found)


def attend(keys: Tensor, grid: Tensor, query: Tensor, weight: Tensor, rows: Rows) -> Tensor:
    """The same by the op."""
    return torch.cat(additive_attention(query, AdditiveKeys(keys), weight, grid, rows), 1)


def leaves_of(
    rows: int, scale: float = 1.0, *, images: int = IMAGES, units: int = UNITS, seed: int = 0
) -> Leaves:
    """Keys and queries in +-scale, grids and weights, all of which get gradients."""
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
    "all in order": Rows(torch.arange(IMAGES * CAPTIONS), IMAGES, CAPTIONS),
    "shuffled, some missing": Rows(torch.tensor([20, 3, 4, 0, 11, 9, 5, 19]), IMAGES, CAPTIONS),
    "one": Rows(torch.tensor([8]), IMAGES, CAPTIONS),
    "eighteen an image": Rows(torch.arange(2 * 18).view(-1, 6).T.flatten(), 2, 18),
}


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("rows", ROWS.values(), ids=list(ROWS))
def test_attention_and_gradients_are_the_textbooks(rows: Rows, scale: float) -> None:
    leaves = leaves_of(len(rows.index), scale, images=rows.images)
    ours, expected = attend(*leaves, rows), textbook(*leaves, rows)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=5e-6)
    for got, wanted in zip(gradients(ours, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("units", [1, 15, 16, 17, 64])
def test_any_number_of_units(units: int) -> None:
    """Sixteen at a time are computed, and what is left."""
    rows = ROWS["shuffled, some missing"]
    leaves = leaves_of(len(rows.index), units=units)
    ours, expected = attend(*leaves, rows), textbook(*leaves, rows)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=5e-6)
    for got, wanted in zip(gradients(ours, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 15, 16, 63, 64, 81, 150])
def test_any_number_of_channels(channels: int) -> None:
    """Sixty-four at a time are summed, then sixteen, and what is left."""
    rows = ROWS["eighteen an image"]
    keys, _, query, weight = leaves_of(len(rows.index), images=rows.images)
    generator = torch.Generator().manual_seed(2)
    grid = torch.randn(rows.images, LOCATIONS, channels, generator=generator).requires_grad_()
    leaves = keys, grid, query, weight
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
    """Two words that share the keys, the second of fewer rows; then a second backward pass."""
    rows = ROWS["shuffled, some missing"]
    keys, grid, query, weight = leaves = leaves_of(len(rows.index))
    memory = AdditiveKeys(keys)
    both = torch.cat(
        [
            torch.cat(additive_attention(2 * query[:n], memory, weight, grid, rows.head(n)), 1)
            for n in (len(query), 3)
        ]
    )
    expected = torch.cat(
        [textbook(keys, grid, 2 * query[:n], weight, rows.head(n)) for n in (len(query), 3)]
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
def test_no_value_is_too_large(scale: float, implementation: str) -> None:
    """The compiled kernels limit values to +-LIMIT, and nothing becomes NaN or infinite."""
    limit = LIMIT if implementation != "torch" else 1e4
    if scale > limit == 1e4:
        pytest.skip("tanh(inf - inf) is NaN")
    rows = ROWS["all in order"]
    keys, grid, query, weight = leaves = leaves_of(len(rows.index))
    with torch.no_grad():
        keys *= scale
        query *= scale
    ours = attend(*leaves, rows)
    within = keys.clamp(-limit, limit), grid, query.clamp(-limit, limit), weight
    torch.testing.assert_close(ours.double(), textbook(*within, rows), rtol=1e-5, atol=1e-5)
    for gradient in gradients(ours, leaves):
        assert gradient.isfinite().all()


def test_nan_is_not_hidden() -> None:
    """Otherwise nobody would notice that training diverges."""
    rows = ROWS["all in order"]
    keys, grid, query, weight = leaves_of(len(rows.index))
    with torch.no_grad():
        query[4, 2] = float("nan")
        keys[5, 1, 3] = float("nan")
    found = attend(keys, grid, query, weight, rows).isnan().any(1)
    assert found.nonzero().flatten().tolist() == [4, 15, 16, 17]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_keys_and_queries_in_half_precision_are_computed_with_in_single(dtype: torch.dtype) -> None:
    rows = ROWS["all in order"]
    keys, grid, query, weight = leaves_of(len(rows.index), 3.0)
    keys, query = (leaf.detach().to(dtype).requires_grad_() for leaf in (keys, query))
    leaves = keys, grid, query, weight
    with torch.autocast("cpu", dtype=dtype):
        ours = attend(*leaves, rows)
    expected = textbook(*leaves, rows)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)
    rounding = torch.finfo(dtype).eps
    for got, wanted in zip(gradients(ours, leaves), gradients(expected, leaves), strict=True):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=2 * rounding, atol=4 * rounding)


@pytest.mark.parametrize("rows", ROWS.values(), ids=list(ROWS))
def test_keys_and_grid_in_bfloat16_as_in_training(rows: Rows, implementation: str) -> None:
    """Compiled kernels round e^{2 key}, which moves a key by 2^-9 at most; the grid is exact."""
    keys, grid, query, weight = leaves_of(len(rows.index), images=rows.images, units=17)
    keys, grid = (leaf.detach().bfloat16().requires_grad_() for leaf in (keys, grid))
    leaves = keys, grid, query, weight
    seen = keys.detach().double()
    if implementation != "torch":
        seen = (2 * seen).exp().bfloat16().double().log() / 2
    assert (seen - keys).abs().max() < 2**-9
    exact = seen.requires_grad_(), grid.detach().double().requires_grad_(), query, weight
    ours, expected = attend(*leaves, rows), textbook(*exact, rows)
    # C takes reciprocals of 14 bits where the keys are in bfloat16.
    eps = torch.finfo(torch.bfloat16).eps if implementation == "C" else 1e-5
    torch.testing.assert_close(ours.double(), expected, rtol=eps, atol=eps)
    eps = torch.finfo(torch.bfloat16).eps
    for got, wanted in zip(gradients(ours, leaves), gradients(expected, exact), strict=True):
        torch.testing.assert_close(got.double(), wanted.double(), rtol=4 * eps, atol=4 * eps)


def test_double_precision_stays_double_precision() -> None:
    """Whatever the backend, by the reference: finite differences need it."""
    rows = ROWS["shuffled, some missing"]
    leaves = leaves_of(len(rows.index))
    leaves = tuple(leaf.detach().double().requires_grad_() for leaf in leaves)
    ours, expected = attend(*leaves, rows), textbook(*leaves, rows)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(gradients(ours, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_gradients_equal_finite_differences() -> None:
    """The derivative in a random direction, of a sum of the results in double precision."""
    rows, step = ROWS["shuffled, some missing"], 1e-3
    leaves = leaves_of(len(rows.index))
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(leaf.shape, generator=generator) for leaf in leaves]
    upstream = torch.randn(len(rows.index), LOCATIONS + CHANNELS, generator=generator)
    found = torch.autograd.grad((attend(*leaves, rows) * upstream).sum(), leaves)
    for which, (gradient, direction) in enumerate(zip(found, directions, strict=True)):
        ends = []
        for sign in (-1, 1):
            moved = [leaf.detach().double() for leaf in leaves]
            moved[which] += sign * step * direction
            ends.append(float((textbook(*moved, rows) * upstream).sum()))
        slope = (ends[1] - ends[0]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-3)


def test_the_result_does_not_depend_on_what_else_needs_gradients() -> None:
    """Each subset of the four arguments, as when parts of a model are frozen."""
    rows = ROWS["shuffled, some missing"]
    leaves = leaves_of(len(rows.index))
    expected = gradients(attend(*leaves, rows), leaves)
    for frozen in range(1, 15):
        parts = [
            leaf.detach().requires_grad_(not frozen >> place & 1)
            for place, leaf in enumerate(leaves)
        ]
        learned = [part for part in parts if part.requires_grad]
        got = iter(gradients(attend(*parts, rows), tuple(learned)))  # type: ignore[arg-type]
        for part, gradient in zip(parts, expected, strict=True):
            if part.requires_grad:
                torch.testing.assert_close(next(got), gradient, rtol=1e-5, atol=1e-6)


def test_selected_images_keep_their_keys() -> None:
    """As in decoding, where images leave the batch."""
    rows, kept = ROWS["all in order"], torch.tensor([5, 1, 2])
    keys, grid, query, weight = (leaf.detach() for leaf in leaves_of(len(rows.index)))
    memory = AdditiveKeys(keys)
    alpha, context = additive_attention(query, memory, weight, grid, rows)
    few = Rows.all(3, CAPTIONS, kept.device)
    order = (CAPTIONS * kept[:, None] + torch.arange(CAPTIONS)).flatten()
    found = additive_attention(query[order], memory[kept], weight, grid[kept], few)
    torch.testing.assert_close(found[0], alpha[order])
    torch.testing.assert_close(found[1], context[order])


def test_no_captions_have_no_attention() -> None:
    none = Rows.all(0, 2, torch.device("cpu"))
    alpha, context = additive_attention(
        torch.empty(0, UNITS),
        AdditiveKeys(torch.empty(0, LOCATIONS, UNITS)),
        torch.ones(UNITS),
        torch.empty(0, LOCATIONS, CHANNELS),
        none,
    )
    assert alpha.shape == (0, LOCATIONS)
    assert context.shape == (0, CHANNELS)


def test_a_second_derivative_is_right_or_refused(implementation: str) -> None:
    rows = ROWS["all in order"]
    leaves = leaves_of(len(rows.index))

    def penalty(output: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        total = torch.stack([each.double().square().sum() for each in first]).sum()
        return torch.autograd.grad(total, leaves)

    if implementation != "torch":
        with pytest.raises(RuntimeError, match=r"second derivative; use backend=torch"):
            penalty(attend(*leaves, rows))
        return
    ours, expected = penalty(attend(*leaves, rows)), penalty(textbook(*leaves, rows))
    for got, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
