"""Each attention against its paper's equations or PyTorch's own, and as a part of a decoder."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captioning.kernels.ops import Rows
from captioning.models.attention.additive import AdditiveAttention
from captioning.models.attention.base import Attention, Memory
from captioning.models.attention.multiplicative import MultiplicativeAttention
from captioning.models.attention.scaled_dot import ScaledDotAttention
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.support.errors import CaptioningError

IMAGES, CAPTIONS, LOCATIONS, CHANNELS, QUERY, UNITS = 4, 3, 7, 8, 5, 12
ROWS = Rows(torch.tensor([7, 0, 3, 11, 2, 8]), IMAGES, CAPTIONS)

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["C", "torch", "Triton"])


def given() -> tuple[Tensor, Tensor]:
    """A grid, and the states of some captions."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(IMAGES, LOCATIONS, CHANNELS, generator=generator, requires_grad=True)
    states = torch.randn(len(ROWS.index), QUERY, generator=generator, requires_grad=True)
    return grid, states


def made(kind: type[Attention], **arguments: Any) -> Attention:
    torch.manual_seed(0)
    return kind(CHANNELS, QUERY, UNITS, **arguments)


def compare(
    attention: Attention, equations: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> None:
    """Weights, context and all gradients with those of equations for one caption at a time.

    Args:
        attention: in single precision.
        equations: from the grid of one image (P x C) and a state (H), in double precision.
    """
    grid, states = given()
    leaves = grid, states, *attention.parameters()
    ours = torch.cat(attention(attention.query(states), attention.prepare(grid), ROWS), 1)
    expected = torch.stack(
        [
            torch.cat(equations(grid[index // CAPTIONS].double(), state.double()))
            for index, state in zip(ROWS.index.tolist(), states, strict=True)
        ]
    )
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad((ours * upstream).sum(), leaves)
    wanted = torch.autograd.grad((expected * upstream).sum(), leaves)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """W x + b in double precision."""
    assert isinstance(layer, nn.Linear)
    return x @ layer.weight.double().T + layer.bias.double()


class Doubled(AdditiveAttention):
    def scores(self, query: Tensor, memory: Memory) -> Tensor:
        return 2 * super().scores(query, memory)


def test_the_scores_of_a_subclass_of_additive_attention_count() -> None:
    grid, states = given()
    plain, doubled = made(AdditiveAttention), made(Doubled)
    weights, context = doubled(doubled.query(states), doubled.prepare(grid), ROWS)
    expected = plain(plain.query(states), plain.prepare(grid), ROWS)[0].pow(2)
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(context, torch.einsum("rp,rpc->rc", weights, grid[ROWS.image]))


@IMPLEMENTATIONS
def test_additive(implementation: str, use: Callable[[str], None]) -> None:
    """Xu et al. 2015, eq. 4, 5 and 13."""
    use(implementation)
    attention = made(AdditiveAttention)
    assert isinstance(attention, AdditiveAttention)

    def equations(grid: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.stack(
            [
                attention.score.double()
                @ (linear(attention.key, a) + linear(attention.query, state)).tanh()
                for a in grid
            ]
        )
        alpha = scores.exp() / scores.exp().sum()
        return alpha, sum((w * a for w, a in zip(alpha, grid, strict=True)), torch.zeros(CHANNELS))

    compare(attention, equations)


def test_the_scores_of_additive_attention_are_those_that_it_uses() -> None:
    """The op computes what a subclass that overrides nothing else would inherit."""
    attention = made(AdditiveAttention)
    grid, states = given()
    memory, query = attention.prepare(grid), attention.query(states)
    ours = attention(query, memory, ROWS)
    for got, wanted in zip(ours, Attention.forward(attention, query, memory, ROWS), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@IMPLEMENTATIONS
def test_multiplicative(implementation: str, use: Callable[[str], None]) -> None:
    """Luong et al. 2015, eq. 8, "general"."""
    use(implementation)
    attention = made(MultiplicativeAttention)

    def equations(grid: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        query = linear(attention.query, state)
        scores = torch.stack([(linear(attention.key, a) * query).sum() for a in grid])
        alpha = scores.exp() / scores.exp().sum()
        return alpha, sum((w * a for w, a in zip(alpha, grid, strict=True)), torch.zeros(CHANNELS))

    compare(attention, equations)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_scaled_dot_is_pytorchs(heads: int) -> None:
    """torch.nn.functional.scaled_dot_product_attention in each head, and the output projection."""
    attention = made(ScaledDotAttention, heads=heads)
    assert isinstance(attention, ScaledDotAttention)

    def equations(grid: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        query = linear(attention.query, state).view(heads, 1, -1)
        key = linear(attention.key, grid).view(LOCATIONS, heads, -1).transpose(0, 1)
        value = linear(attention.value, grid).view(LOCATIONS, heads, -1).transpose(0, 1)
        found = nn.functional.scaled_dot_product_attention(query, key, value)
        # With the identity as the values, what is mixed is the weights themselves.
        identity = torch.eye(LOCATIONS).double().expand(heads, -1, -1)
        weights = nn.functional.scaled_dot_product_attention(query, key, identity)
        return weights.mean((0, 1)), linear(attention.output, found.flatten())

    compare(attention, equations)


def test_scaled_dot_is_a_layer_of_pytorchs_multihead_attention() -> None:
    torch.manual_seed(0)
    attention = ScaledDotAttention(CHANNELS, QUERY, CHANNELS, heads=4)
    theirs = nn.MultiheadAttention(CHANNELS, 4, batch_first=True)
    with torch.no_grad():
        attention.query = nn.Linear(CHANNELS, CHANNELS)
        layers = attention.query, attention.key, attention.value
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        theirs.out_proj.load_state_dict(attention.output.state_dict())
    grid, states = torch.randn(IMAGES, LOCATIONS, CHANNELS), torch.randn(IMAGES, 3, CHANNELS)
    rows = Rows.all(IMAGES, 3, grid.device)
    weights, context = attention(
        attention.query(states.flatten(0, 1)), attention.prepare(grid), rows
    )
    expected, expected_weights = theirs(states, grid, grid)
    torch.testing.assert_close(context.view_as(expected), expected)
    torch.testing.assert_close(weights.view_as(expected_weights), expected_weights)


@pytest.mark.parametrize("kind", [AdditiveAttention, MultiplicativeAttention, ScaledDotAttention])
def test_under_autocast_the_weights_stay_near_and_sum_to_one(kind: type[Attention]) -> None:
    attention = made(kind, **({"heads": 2} if kind is ScaledDotAttention else {}))
    grid, states = given()
    exact = attention(attention.query(states), attention.prepare(grid), ROWS)
    with torch.autocast("cpu", torch.bfloat16):
        weights, context = attention(attention.query(states), attention.prepare(grid), ROWS)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(1), torch.ones(len(ROWS.index)))
    torch.testing.assert_close(weights, exact[0], rtol=0.1, atol=0.01)
    torch.testing.assert_close(context.float(), exact[1], rtol=0.1, atol=0.05)


class Sharp(MultiplicativeAttention):
    """A user's own, with a further argument."""

    def __init__(
        self, channels: int, query_dim: int, attention_dim: int, temperature: float = 0.5
    ) -> None:
        super().__init__(channels, query_dim, attention_dim)
        self.temperature = temperature

    def scores(self, query: Tensor, memory: Memory) -> Tensor:
        return super().scores(query, memory) / self.temperature


OWN = f"{Sharp.__module__}.Sharp"


@pytest.mark.parametrize(
    ("spec", "kind", "values"),
    [
        ("additive", AdditiveAttention, {}),
        ("multiplicative", MultiplicativeAttention, {}),
        ("scaled_dot", ScaledDotAttention, {"heads": 8}),
        ({"_target_": "scaled_dot", "heads": 4}, ScaledDotAttention, {"heads": 4}),
        (OWN, Sharp, {"temperature": 0.5}),
        ({"_target_": OWN, "temperature": 0.1}, Sharp, {"temperature": 0.1}),
    ],
    ids=str,
)
def test_attention_is_chosen_by_name_or_by_path(
    spec: Any, kind: type[Attention], values: dict[str, Any]
) -> None:
    decoder = AttentionLSTM(20, 16, hidden_dim=6, embed_dim=4, attention=spec, attention_dim=24)
    assert type(decoder.attention) is kind
    assert {name: getattr(decoder.attention, name) for name in values} == values
    assert decoder.attention.key.weight.shape == (24, 16)  # type: ignore[union-attr]
    assert decoder.attention.query.weight.shape == (24, 6)  # type: ignore[union-attr]
    tokens = torch.tensor([[[1, 5, 6, 2]]])
    output = decoder(torch.randn(1, 7, 16), tokens)
    assert output.coverage is not None
    torch.testing.assert_close(output.coverage.sum(-1), torch.tensor([[3.0]]))


def test_additive_attention_is_what_one_gets_unasked() -> None:
    assert type(AttentionLSTM(20, 16).attention) is AdditiveAttention


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("scaled_dots", "model.attention=scaled_dots: .*did you mean scaled_dot."),
        (
            "hard",
            "model.attention=hard: .* additive, multiplicative, scaled_dot, and the dotted",
        ),
        ("no.such.Class", "model.attention._target_=no.such.Class: no such class"),
        ("torch.nn.Linear", "model.attention._target_=torch.nn.Linear is not a Attention"),
        ({"_target_": "scaled_dot", "head": 4}, "model.attention.head: .*heads"),
        ({"_target_": "scaled_dot", "heads": 5}, "heads=5 must divide model.attention_dim=24 and"),
        ({"_target_": "scaled_dot", "heads": 0}, "heads=0 must divide"),
    ],
)
def test_an_attention_that_cannot_be_is_named(spec: Any, words: str) -> None:
    with pytest.raises(CaptioningError, match=words):
        AttentionLSTM(20, 16, attention=spec, attention_dim=24)
