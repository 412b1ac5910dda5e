"""Additive attention depends on its arguments alone, whatever they are and were before."""

import copy
from collections.abc import Callable

import pytest
import torch
from right_support import (
    CHANNELS,
    IMAGES,
    LOCATIONS,
    assert_directional,
    assert_right,
    assert_same_gradients,
    decoder_loss,
    gradients_of,
    small_decoder,
    small_grid,
)  # fmt: skip
from torch import Tensor, nn

from captioning.kernels import ops
from captioning.kernels.backend import use_backend
from captioning.kernels.ops import AdditiveKeys, Rows, additive_attention
from captioning.models.attention.additive import AdditiveAttention
from captioning.models.attention.base import Memory

UNITS = 5
ROWS = Rows(torch.tensor([3, 0, 2]), IMAGES, 2)


def leaves(
    dtype: torch.dtype = torch.float32, frozen: Callable[[str], bool] = lambda name: False
) -> dict[str, Tensor]:
    """What several words of attention are computed from."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "first": (3, UNITS),
        "second": (3, UNITS),
        "keys": (IMAGES, LOCATIONS, UNITS),
        "weight": (UNITS,),
        "other": (UNITS,),
        "grid": (IMAGES, LOCATIONS, CHANNELS),
        "temperature": (),
    }
    return {
        name: (0.5 + torch.randn(shape, generator=generator))
        .to(dtype)
        .requires_grad_(not frozen(name))
        for name, shape in shapes.items()
    }


Words = Callable[[dict[str, Tensor]], list[tuple[Tensor, Tensor]]]


def loss_of(words: list[tuple[Tensor, Tensor]]) -> Tensor:
    """A number that depends on all weights and contexts of all words, each in another way."""
    generator = torch.Generator().manual_seed(1)
    terms = [
        (each * torch.randn(each.shape, generator=generator).to(each.dtype)).sum()
        for word in words
        for each in word
    ]
    return torch.stack(terms).sum()


def assert_words_right(
    backend: str, words: Words, frozen: Callable[[str], bool] = lambda name: False
) -> None:
    """Values and gradients are those of finite differences, or those of the reference."""
    if backend == "torch":
        exact = leaves(torch.float64, frozen)
        _, found = gradients_of(lambda: loss_of(words(exact)), exact)
        kept = {name: leaf for name, leaf in exact.items() if leaf.requires_grad}
        assert_directional(kept, found, lambda: loss_of(words(exact)))
        return
    given = leaves(frozen=frozen)
    value, found = gradients_of(lambda: loss_of(words(given)), given)
    with use_backend("torch"):
        expected_value, expected = gradients_of(lambda: loss_of(words(given)), given)
    torch.testing.assert_close(value, expected_value, rtol=1e-5, atol=1e-5)
    assert_same_gradients(found, expected)


def two_words(given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    keys = AdditiveKeys(given["keys"])
    return [
        additive_attention(given[word], keys, given["weight"], given["grid"], ROWS)
        for word in ("first", "second")
    ]


def constant_temperature(given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    keys = AdditiveKeys(given["keys"])
    return [
        additive_attention(given[word], keys, given["weight"] / 4, given["grid"], ROWS)
        for word in ("first", "second")
    ]


def learned_temperature(given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    keys = AdditiveKeys(given["keys"])
    return [
        additive_attention(
            given[word], keys, given["weight"] * given["temperature"].exp(), given["grid"], ROWS
        )
        for word in ("first", "second")
    ]


def another_weight_each_word(given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    keys = AdditiveKeys(given["keys"])
    return [
        additive_attention(given[word], keys, given["weight"] * scale, given["grid"], ROWS)
        for word, scale in (("first", 1.0), ("second", -2.0), ("first", 0.3))
    ]


def two_attentions(given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    keys = AdditiveKeys(given["keys"])
    return [
        additive_attention(given[word], keys, given[weight], given["grid"] * scale, ROWS)
        for word in ("first", "second")
        for weight, scale in (("weight", 1.0), ("other", 2.0))
    ]


def indexed(given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Some images leave between the words, in another order; one of them twice."""
    keys, images = AdditiveKeys(given["keys"]), torch.tensor([1, 0, 1])
    found = [additive_attention(given["first"], keys, given["weight"], given["grid"], ROWS)]
    rows = Rows(torch.tensor([5, 0, 3]), 3, 2)
    chosen, grid = keys[images], given["grid"][images]
    found += [additive_attention(given["second"], chosen, given["weight"], grid, rows)]
    last = keys[1:]
    rows = Rows(torch.tensor([1, 0]), 1, 2)
    found += [additive_attention(given["second"][:2], last, given["weight"], grid[:1], rows)]
    return [*found, additive_attention(given["first"], keys, given["weight"], given["grid"], ROWS)]


def scaled_keys(given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    keys = AdditiveKeys(given["keys"])
    first = additive_attention(given["first"], keys, given["weight"], given["grid"], ROWS)
    scaled = AdditiveKeys(keys.keys * given["temperature"])
    second = additive_attention(given["second"], scaled, given["weight"], given["grid"], ROWS)
    return [first, second]


def keys_changed_in_place(given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    keys = AdditiveKeys(given["keys"] * 1)
    first = additive_attention(given["first"], keys, given["weight"], given["grid"], ROWS)
    keys.keys.mul_(given["temperature"])
    second = additive_attention(given["second"], keys, given["weight"], given["grid"], ROWS)
    return [first, second]


def one_query_twice(given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    keys = AdditiveKeys(given["keys"])
    word = given["first"], keys, given["weight"], given["grid"], ROWS
    return [additive_attention(*word), additive_attention(*word)]


def query_by_query(given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The second query is made of what the first one found, as in an LSTM."""
    keys = AdditiveKeys(given["keys"])
    first = additive_attention(given["first"], keys, given["weight"], given["grid"], ROWS)
    query = given["second"] + first[1][:, :UNITS] * first[0].sum(1, keepdim=True)
    return [first, additive_attention(query, keys, given["weight"], given["grid"], ROWS)]


@pytest.mark.parametrize(
    "words",
    [
        two_words, constant_temperature, learned_temperature, another_weight_each_word,
        two_attentions, indexed, scaled_keys, keys_changed_in_place, one_query_twice,
        query_by_query,
    ],
)  # fmt: skip
def test_values_and_all_gradients(backend: str, words: Words) -> None:
    assert_words_right(backend, words)


@pytest.mark.parametrize("frozen", ["keys", "weight", "grid", "first"])
@pytest.mark.parametrize("others", [False, True], ids=["alone frozen", "alone trained"])
def test_gradients_of_some_arguments(backend: str, frozen: str, others: bool) -> None:
    assert_words_right(backend, two_words, lambda name: (name == frozen) != others)


@pytest.mark.parametrize("name", ["first", "keys", "weight", "grid"])
@pytest.mark.parametrize("layout", ["transposed", "every other", "expanded", "one image"])
def test_tensors_that_do_not_lie_in_one_piece(backend: str, name: str, layout: str) -> None:
    def other_layout(tensor: Tensor) -> Tensor:
        if layout in ("transposed", "one image"):
            return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor.clone()
        if layout == "every other":
            return torch.stack([tensor, -tensor], -1).flatten(-2)[..., ::2]
        return tensor[..., :1].expand(tensor.shape)

    def words(given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        rows, images = (Rows(torch.tensor([0, 2, 1]), 1, 3), 1) if layout == "one image" else (
            ROWS, IMAGES,
        )  # fmt: skip
        changed = {"keys": given["keys"][:images], "grid": given["grid"][:images]}
        changed = given | changed
        changed[name] = other_layout(changed[name])
        keys = AdditiveKeys(changed["keys"])
        return [
            additive_attention(changed[word], keys, changed["weight"], changed["grid"], rows)
            for word in ("first", "second")
        ]

    assert_words_right(backend, words)


def test_shapes_that_broadcast_or_do_not_fit(backend: str, unchecked: None) -> None:
    """They are computed as torch computes them, or refused as torch refuses them."""

    def shared_image(given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        keys = AdditiveKeys(given["keys"][:1])
        return [additive_attention(given["first"], keys, given["weight"], given["grid"][:1], ROWS)]

    given = leaves()
    with use_backend("torch"):
        expected = loss_of(shared_image(given))
    torch.testing.assert_close(loss_of(shared_image(given)), expected)
    keys = AdditiveKeys(given["keys"])
    query, weight, grid = given["first"], given["weight"], given["grid"]
    for wrong in (
        (query, keys, weight[:2], grid),
        (query[:, :2], keys, weight, grid),
        (query, keys, weight, grid[:, :1]),
        (query[:2], keys, weight, grid),
    ):
        with pytest.raises((RuntimeError, IndexError)):
            additive_attention(*wrong, ROWS)


def test_a_score_vector_changed_in_place_is_right_or_refused(backend: str) -> None:
    given = leaves()
    keys = AdditiveKeys(given["keys"])
    weight = given["weight"]
    first = additive_attention(given["first"], keys, weight, given["grid"], ROWS)
    with torch.no_grad():
        weight.mul_(2)
    second = additive_attention(given["second"], keys, weight, given["grid"], ROWS)
    with use_backend("torch"), torch.no_grad():
        expected = additive_attention(given["second"], keys, weight, given["grid"], ROWS)
    torch.testing.assert_close(second, expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss_of([first, second]).backward()


def test_keys_changed_under_no_grad_are_seen(backend: str) -> None:
    given = leaves()
    keys = AdditiveKeys(given["keys"].detach().clone())
    arguments = given["first"], keys, given["weight"], given["grid"], ROWS
    with torch.no_grad():
        additive_attention(*arguments)
        keys.keys.mul_(2)
        chosen = keys[torch.tensor([0, 1])]
        found = additive_attention(*arguments)
        also = additive_attention(given["first"], chosen, given["weight"], given["grid"], ROWS)
        with use_backend("torch"):
            expected = additive_attention(*arguments)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(also, expected)


def test_keys_that_are_exchanged_are_seen_or_refused(backend: str) -> None:
    given = leaves()
    keys = AdditiveKeys(given["keys"].detach().clone())
    arguments = given["first"], keys, given["weight"], given["grid"], ROWS
    with torch.no_grad():
        additive_attention(*arguments)
        try:
            keys.keys = keys.keys * 2  # type: ignore[misc]
        except AttributeError:
            return
        found = additive_attention(*arguments)
        with use_backend("torch"):
            torch.testing.assert_close(found, additive_attention(*arguments))


def test_copies_of_keys_share_nothing(backend: str) -> None:
    given = leaves()
    keys = AdditiveKeys(given["keys"].detach().clone())
    with torch.no_grad():
        keys.keys.add_(0)  # so that the copy's count of changes is behind
        arguments = given["first"], keys, given["weight"], given["grid"], ROWS
        before = additive_attention(*arguments)
        copied = copy.deepcopy(keys)
        copied.keys.mul_(3)
        arguments = given["first"], copied, given["weight"], given["grid"], ROWS
        found = additive_attention(*arguments)
        with use_backend("torch"):
            torch.testing.assert_close(found, additive_attention(*arguments))
        again = additive_attention(given["first"], keys, given["weight"], given["grid"], ROWS)
    torch.testing.assert_close(again, before)


def test_in_inference_mode(backend: str) -> None:
    given = {name: each.detach() for name, each in leaves().items()}
    with torch.inference_mode():
        keys = AdditiveKeys(given["keys"] * 1)
        arguments = given["first"], keys, given["weight"], given["grid"], ROWS
        additive_attention(*arguments)
        keys.keys.mul_(2)
        found = additive_attention(*arguments)
        with use_backend("torch"):
            torch.testing.assert_close(found, additive_attention(*arguments))


def test_no_rows_and_no_images(backend: str) -> None:
    given = leaves()
    keys = AdditiveKeys(given["keys"])
    none = ROWS.head(0)
    alpha, context = additive_attention(
        given["first"][:0], keys, given["weight"], given["grid"], none
    )
    assert alpha.shape == (0, LOCATIONS)
    (alpha.sum() + context.sum()).backward()
    assert given["keys"].grad is not None
    assert not given["keys"].grad.any()


@pytest.mark.parametrize("changed", ["query", "weight"])
def test_one_argument_in_double_precision(backend: str, changed: str) -> None:
    """The result is as exact as the reference's."""
    given = leaves()
    keys = AdditiveKeys(given["keys"])
    query = given["first"].double() if changed == "query" else given["first"]
    weight = given["weight"].double() if changed == "weight" else given["weight"]
    results = []
    for choice in ("torch", None):
        try:
            if choice:
                with use_backend(choice):
                    results.append(additive_attention(query, keys, weight, given["grid"], ROWS))
            else:
                results.append(additive_attention(query, keys, weight, given["grid"], ROWS))
        except RuntimeError:
            results.append(None)
    expected, found = results
    if expected is None:
        assert found is None
    else:
        assert [each.dtype for each in found] == [each.dtype for each in expected]
        torch.testing.assert_close(found, expected)


class Temperature(AdditiveAttention):
    """Attention whose scores are divided by a number, which may be learned."""

    def __init__(self, channels: int, query_dim: int, attention_dim: int, learned: bool) -> None:
        super().__init__(channels, query_dim, attention_dim)
        start = torch.tensor(4.0)
        self.temperature = nn.Parameter(start) if learned else start

    def forward(self, query: Tensor, memory: Memory, rows: Rows) -> tuple[Tensor, Tensor]:
        score = self.score / self.temperature
        return additive_attention(query, memory["keys"], score, memory["grid"], rows)


class TwoScores(AdditiveAttention):
    """Two score vectors on one memory, whose results are mixed."""

    def __init__(self, channels: int, query_dim: int, attention_dim: int) -> None:
        super().__init__(channels, query_dim, attention_dim)
        self.second = nn.Parameter(torch.randn(attention_dim))

    def forward(self, query: Tensor, memory: Memory, rows: Rows) -> tuple[Tensor, Tensor]:
        arguments = query, memory["keys"], self.score, memory["grid"], rows
        weights, context = additive_attention(*arguments)
        arguments = query, memory["keys"], self.second, memory["grid"], rows
        others, other = additive_attention(*arguments)
        return (weights + others) / 2, context - other


class ScoreOfTheWord(AdditiveAttention):
    """Another score vector for every word: it is multiplied at each call."""

    def prepare(self, grid: Tensor) -> Memory:
        self.calls = 0
        return super().prepare(grid)

    def forward(self, query: Tensor, memory: Memory, rows: Rows) -> tuple[Tensor, Tensor]:
        self.calls += 1
        score = self.score * 1.3**self.calls
        return additive_attention(query, memory["keys"], score, memory["grid"], rows)


@pytest.mark.parametrize(
    "attention",
    [
        lambda: Temperature(CHANNELS, 6, 6, learned=False),
        lambda: Temperature(CHANNELS, 6, 6, learned=True),
        lambda: TwoScores(CHANNELS, 6, 6),
        lambda: ScoreOfTheWord(CHANNELS, 6, 6),
    ],
    ids=["constant temperature", "learned temperature", "two scores", "score of the word"],
)
def test_attention_of_ones_own_in_a_decoder(
    backend: str, attention: Callable[[], AdditiveAttention]
) -> None:
    decoder = small_decoder()
    torch.manual_seed(3)
    decoder.attention = attention()
    assert_right(backend, decoder, lambda: decoder_loss(decoder, small_grid()))


def test_the_ops_are_what_the_tests_believe_they_are(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or all comparisons here could be of the reference with itself."""
    called = []
    compiled = ops.additive.additive_attention
    monkeypatch.setattr(
        ops.additive, "additive_attention", lambda *a: called.append(a[-1].language) or compiled(*a)
    )
    two_words(leaves())
    assert called == ([] if backend == "torch" else [backend] * 2)
