"""Decoding against exhaustive search and a textbook beam; its options against a plain checker.

The textbooks call ``forward`` on one caption of one image at a time, never ``step``.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor

from captioning.decoding import MBR, Beam, Decoding, DiverseBeam, Greedy, Hypothesis, Sample
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.base import Decoder, Memory, State, Step, TeacherForced
from captioning.models.decoders.lstm import LSTM
from captioning.models.decoders.transformer import TransformerDecoder
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import END, PAD, SPECIAL_WORDS, START, UNK

WORDS = 4  # the first token that is a word
LOCATIONS, CHANNELS = 5, 6

ANYTHING = {"min_length": 0, "allow_unknown": True, "allow_repeats": True, "no_repeat_ngram": 0}
"""Options that forbid nothing."""

STRATEGIES: list[Decoding] = [
    Greedy(),
    Beam(beam_size=3),
    Sample(captions=3, seed=5),
    DiverseBeam(beam_size=3),
    MBR(beam_size=2, samples=1),
]
Kind = type[AttentionLSTM] | type[LSTM] | type[TransformerDecoder]
EVERY_KIND = pytest.mark.parametrize("make", [AttentionLSTM, LSTM, TransformerDecoder])
ALL_STRATEGIES = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)


def random_decoder(
    vocabulary: int = 12,
    seed: int = 0,
    end: float = 0.0,
    make: Kind = AttentionLSTM,
    **options: Any,
) -> Any:
    """A decoder with opinions, strong enough that captions differ; ``end`` makes them shorter."""
    torch.manual_seed(seed)
    if options.get("attention") == "scaled_dot":
        options["attention"] = {"_target_": "scaled_dot", "heads": 2}
    if make is not TransformerDecoder:
        options["embed_dim"] = 8
    decoder = make(vocabulary, CHANNELS, hidden_dim=8, **options)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.uniform_(-1.2, 1.2)
        decoder.output_words.bias[END] += end
    decoder.words = words_of(vocabulary)
    return decoder.eval()


def words_of(vocabulary: int) -> list[str]:
    """A word for each token, which is its number."""
    return [*SPECIAL_WORDS, *map(str, range(WORDS, vocabulary))]


def random_grid(images: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, LOCATIONS, CHANNELS, generator=generator)


class Script(Decoder):
    """Reads its lines from the image: location t of the grid holds the scores of word t."""

    words = words_of(10)

    def prepare(self, grid: Tensor) -> Memory:
        return {"lines": grid}

    def start(self, memory: Memory, captions: int) -> State:
        return {"word": torch.zeros(len(memory["lines"]), captions, dtype=torch.long)}

    def step(self, tokens: Tensor, state: State, memory: Memory) -> Step:
        word, lines = state["word"], memory["lines"]
        logits = lines[torch.arange(len(lines))[:, None], word]
        attention = torch.nn.functional.one_hot(word, lines.shape[1]).float()
        return Step(logits, {"word": word + 1}, attention)

    def forward(self, grid: Tensor, tokens: Tensor) -> TeacherForced:
        raise NotImplementedError


def script(*lines: dict[int, float], vocabulary: int = 10) -> Tensor:
    """The grid of one image whose word t has these log-odds, and all others almost none."""
    grid = torch.full((1, len(lines), vocabulary), -20.0)
    grid[..., PAD] = grid[..., START] = 30.0  # what no caption may contain tempts most
    for place, line in zip(grid[0], lines, strict=True):
        for word, score in line.items():
            place[word] = score
    return grid


@torch.inference_mode()
def predictions(decoder: Decoder, image: Tensor, tokens: list[int]) -> Tensor:
    """For each token, the log-probabilities of all words after the true ones before it."""
    output = decoder(image[None], torch.tensor([[[START, *tokens]]]))
    assert output.targets.tolist() == tokens
    return output.logits.double().log_softmax(-1)


def log_prob_of(decoder: Decoder, image: Tensor, tokens: list[int]) -> float:
    return float(predictions(decoder, image, tokens)[range(len(tokens)), tokens].sum())


@torch.inference_mode()
def maps_of(decoder: Decoder, image: Tensor, tokens: list[int]) -> Tensor:
    """Where each word looked: what it adds to the coverage of the words before it."""
    beginnings = torch.zeros(1, len(tokens), len(tokens) + 1, dtype=torch.long)
    for length, row in enumerate(beginnings[0], start=1):
        row[: length + 1] = torch.tensor([START, *tokens[:length]])
    coverage = decoder(image[None], beginnings).coverage
    assert coverage is not None
    return coverage[0].diff(dim=0, prepend=torch.zeros(1, coverage.shape[-1]))


def whole(tokens: list[int], options: Decoding) -> list[int]:
    """With ``<end>``, unless it was cut at the length limit."""
    return tokens if len(tokens) == options.max_length else [*tokens, END]


def broken(tokens: list[int], options: Decoding) -> set[str]:
    """The options that a caption does not obey."""
    n = options.no_repeat_ngram
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)] if n else []
    rules = {
        "special": bool({PAD, START, END} & set(tokens)),
        "max_length": len(tokens) > options.max_length,
        "min_length": len(tokens) < options.min_length,
        "allow_unknown": not options.allow_unknown and UNK in tokens,
        "allow_repeats": not options.allow_repeats and any(a == b for a, b in pairwise(tokens)),
        "no_repeat_ngram": len(set(grams)) < len(grams),
        "no_repeat_across": any(
            a == c and str(b) in options.no_repeat_across
            for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False)
        ),
        "forbidden": any(str(token) in options.forbidden for token in tokens),
        "required": not {*getattr(options, "required", ())} <= {*map(str, tokens)},
    }
    return {name for name, is_broken in rules.items() if is_broken}


@cache
def every_caption(vocabulary: int, length: int) -> dict[tuple[int, ...], float]:
    """The log-probability of every caption of so many words at most, for one image."""
    decoder, (image,) = random_decoder(vocabulary, end=4.0), random_grid(1)
    limit = Greedy(max_length=length)
    return {
        words: log_prob_of(decoder, image, whole(list(words), limit))
        for count in range(length + 1)
        for words in product(range(UNK, vocabulary), repeat=count)
    }


def exhaustive(vocabulary: int, options: Beam) -> list[Hypothesis]:
    """All captions that the options allow, best first."""
    found = []
    for words, log_prob in every_caption(vocabulary, options.max_length).items():
        tokens = list(words)
        if not broken(tokens, options):
            score = log_prob / len(whole(tokens, options)) ** options.length_penalty
            found.append(Hypothesis(tokens, log_prob, score, None))
    return sorted(found, key=lambda hypothesis: -hypothesis.score)


def textbook_beam(decoder: Decoder, image: Tensor, options: Beam) -> list[Hypothesis]:
    """Beam search with lists: an ended beginning gives up its place among the ``beam_size``."""
    live: list[tuple[list[int], float]] = [([], 0.0)]
    found: list[Hypothesis] = []
    for length in range(1, options.max_length + 1):
        candidates = []
        for tokens, total in live:
            following = predictions(decoder, image, [*tokens, END])[-1].tolist()
            for word in range(UNK, decoder.vocabulary_size):
                if not broken([*tokens, word], options) - {"min_length"}:
                    candidates.append(([*tokens, word], total + following[word]))
            if not broken(tokens, options):
                candidates.append(([*tokens, END], total + following[END]))
        candidates.sort(key=lambda candidate: -candidate[1])
        live = []
        for tokens, total in candidates[: options.beam_size - len(found)]:
            if tokens[-1] == END or length == options.max_length:
                words = [token for token in tokens if token != END]
                score = total / length**options.length_penalty
                found.append(Hypothesis(words, total, score, None))
            else:
                live.append((tokens, total))
    return sorted(found, key=lambda hypothesis: -hypothesis.score)


def assert_same(ours: list[Hypothesis], theirs: list[Hypothesis]) -> None:
    assert [h.tokens for h in ours] == [h.tokens for h in theirs]
    for attribute in ("log_prob", "score"):
        expected = [getattr(h, attribute) for h in theirs]
        assert [getattr(h, attribute) for h in ours] == pytest.approx(expected, abs=1e-4)


PENALTIES = pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0, 2.0])
SEARCHES: list[dict[str, Any]] = [
    {"no_repeat_ngram": 0},
    {"min_length": 0, "allow_repeats": True},
    {"min_length": 2, "allow_unknown": True, "no_repeat_ngram": 2},
    {"no_repeat_ngram": 0, "allow_repeats": True, "no_repeat_across": ("4",), "forbidden": ("5",)},
]


@PENALTIES
@pytest.mark.parametrize("options", SEARCHES, ids=str)
@pytest.mark.parametrize(("vocabulary", "length", "beam_size"), [(12, 2, 12), (6, 4, 4**3)])
def test_a_beam_that_holds_every_beginning_finds_the_best_caption_of_all(
    vocabulary: int, length: int, beam_size: int, length_penalty: float, options: dict[str, Any]
) -> None:
    beam = Beam(**options, max_length=length, beam_size=beam_size, length_penalty=length_penalty)
    (found,) = beam(random_decoder(vocabulary, end=4.0), random_grid(1))
    assert_same(found[:1], exhaustive(vocabulary, beam)[:1])


@PENALTIES
@pytest.mark.parametrize("options", SEARCHES, ids=str)
def test_a_beam_that_holds_everything_ranks_every_caption(
    length_penalty: float, options: dict[str, Any]
) -> None:
    beam = Beam(**options, max_length=3, beam_size=4**3, length_penalty=length_penalty)
    (found,) = beam(random_decoder(6, end=4.0), random_grid(1))
    assert_same(found, exhaustive(6, beam))


@EVERY_KIND
@pytest.mark.parametrize("beam_size", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {**ANYTHING, "length_penalty": 0.0}], ids=str)
def test_beams_are_the_textbooks(make: Kind, beam_size: int, options: dict[str, Any]) -> None:
    decoder, grid = random_decoder(end=3.0, make=make), random_grid(3)
    beam = Beam(**options, max_length=6, beam_size=beam_size)
    batch = beam(decoder, grid)
    for image, found in zip(grid, batch, strict=True):
        assert_same(found, textbook_beam(decoder, image, beam))
    lengths = {len(hypothesis.tokens) for found in batch for hypothesis in found}
    assert len(lengths) > 1 or beam_size == 1, "some should end before the others"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, ANYTHING], ids=["default", "anything"])
def test_greedy_is_a_beam_of_one_and_sampling_from_the_best_word(
    seed: int, options: dict[str, Any]
) -> None:
    decoder, grid = random_decoder(seed=seed, end=3.0), random_grid(6)
    greedy = Greedy(**options)(decoder, grid)
    likeliest = Beam(**options, beam_size=1, length_penalty=0.0)(decoder, grid)
    only_choice = Sample(**options, top_k=1, temperature=3.0, seed=seed)(decoder, grid)
    smallest_nucleus = Sample(**options, top_p=1e-6, seed=seed)(decoder, grid)
    for others in (likeliest, only_choice, smallest_nucleus):
        for ours, theirs in zip(greedy, others, strict=True):
            assert_same(ours, theirs)


def decode_one_by_one(strategy: Decoding, decoder: Decoder, grid: Tensor) -> list[list[Hypothesis]]:
    return [strategy(decoder, image[None], attention=True)[0] for image in grid]


@pytest.mark.parametrize(
    "strategy",
    [Greedy(), Beam(beam_size=1), Beam(beam_size=4)],
    ids=["greedy", "beam 1", "beam 4"],
)
@EVERY_KIND
def test_a_batch_gives_what_its_images_give_alone(strategy: Decoding, make: Kind) -> None:
    seed = 7 if make is TransformerDecoder else 25  # with which captions end at many times
    decoder, grid = random_decoder(seed=seed, end=1.5, make=make), random_grid(36)
    together = strategy(decoder, grid, attention=True)
    alone = decode_one_by_one(strategy, decoder, grid)
    for ours, theirs in zip(together, alone, strict=True):
        assert_same(ours, theirs)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.attention, other.attention, rtol=1e-3, atol=1e-4)
    assert len({len(found[0].tokens) for found in together}) > 3, "they should end at many times"


@ALL_STRATEGIES
@EVERY_KIND
def test_what_is_said_of_a_caption_is_what_the_model_says_of_it(
    strategy: Decoding, make: Kind
) -> None:
    """Its log-probability, its score, and where each word looked; and the best comes first."""
    strategy = replace(strategy, max_length=7)
    decoder, grid = random_decoder(end=3.0, make=make), random_grid(8)
    penalty = getattr(strategy, "length_penalty", 0.0)
    for image, found in zip(grid, strategy(decoder, grid, attention=True), strict=True):
        assert 1 <= len(found) <= 3
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        for hypothesis in found:
            tokens = whole(hypothesis.tokens, strategy)
            expected = log_prob_of(decoder, image, tokens)
            assert hypothesis.log_prob == pytest.approx(expected, abs=1e-4)
            if not isinstance(strategy, MBR):  # which ranks by the expected utility
                score = hypothesis.log_prob / len(tokens) ** penalty
                assert hypothesis.score == pytest.approx(score, rel=1e-6)
            if make is LSTM:
                assert hypothesis.attention is None
                continue
            words = len(hypothesis.tokens)
            assert hypothesis.attention is not None
            assert hypothesis.attention.shape == (words, LOCATIONS)
            torch.testing.assert_close(hypothesis.attention.sum(-1), torch.ones(words))
            expected_maps = maps_of(decoder, image, tokens)[:words]
            torch.testing.assert_close(hypothesis.attention, expected_maps, rtol=1e-4, atol=1e-5)


@ALL_STRATEGIES
def test_attention_is_kept_only_where_it_is_asked_for(strategy: Decoding) -> None:
    found = strategy(random_decoder(), random_grid(2))
    assert all(h.attention is None for of_image in found for h in of_image)


@ALL_STRATEGIES
@pytest.mark.parametrize(
    "options",
    [
        {},
        ANYTHING,
        {"min_length": 5, "max_length": 5},
        {"min_length": 3, "allow_unknown": True},
        {"allow_repeats": True, "no_repeat_ngram": 1},
        {"allow_repeats": True, "no_repeat_ngram": 2},
        {"max_length": 1, "min_length": 0},
        {"forbidden": ("5", "6", "12"), "no_repeat_across": ("7", "8")},
    ],
    ids=str,
)
def test_captions_obey_the_options(strategy: Decoding, options: dict[str, Any]) -> None:
    strategy = replace(strategy, **({"max_length": 8} | options))
    for seed in range(5):
        decoder = random_decoder(14, seed=seed, end=float(seed - 2))
        for found in strategy(decoder, random_grid(6, seed)):
            assert found
            for hypothesis in found:
                assert broken(hypothesis.tokens, strategy) == set()
                assert math.isfinite(hypothesis.log_prob)


A, B, C = range(WORDS, WORDS + 3)
OTHERS = {word: 0.1 * word for word in (A, B, C, 8, 9)}
TEMPTATIONS: dict[str, tuple[Tensor, dict[str, Any]]] = {
    "end": (script(*[{**OTHERS, END: 20.0}] * 8), {"min_length": 4}),
    "unknown": (script(*[{**OTHERS, UNK: 20.0}] * 8), {"allow_unknown": False}),
    "repeat": (script(*[{**OTHERS, B: 20.0}] * 8), {"allow_repeats": False}),
    "again": (script(*[{**OTHERS, w: 20.0} for w in (A, B) * 4]), {"no_repeat_ngram": 1}),
    "pairs": (script(*[{**OTHERS, w: 20.0} for w in (A, B) * 4]), {"no_repeat_ngram": 2}),
    "across": (script(*[{**OTHERS, w: 20.0} for w in (A, B) * 4]), {"no_repeat_across": (str(B),)}),
    "forbidden": (script(*[{**OTHERS, B: 20.0}] * 8), {"forbidden": (str(B), str(A))}),
    "triples": (script(*[{**OTHERS, w: 20.0} for w in (A, B, C, C) * 2]), {"no_repeat_ngram": 3}),
}


@ALL_STRATEGIES
@pytest.mark.parametrize("name", TEMPTATIONS)
def test_each_option_withstands_a_model_that_wants_otherwise(strategy: Decoding, name: str) -> None:
    grid, options = TEMPTATIONS[name]
    lax = replace(strategy, **{**ANYTHING, "max_length": 8})
    strict = replace(lax, **options)
    (option,) = options
    for hypothesis in lax(Script(), grid)[0][:1]:
        assert option in broken(hypothesis.tokens, strict), "nothing to withstand"
    for hypothesis in strict(Script(), grid)[0]:
        assert broken(hypothesis.tokens, strict) == set()


@ALL_STRATEGIES
def test_a_caption_that_never_ends_stands_as_it_is(strategy: Decoding) -> None:
    endless = script(*[{word: float(word) for word in range(WORDS, 10)}] * 6)
    endless[..., END] = -torch.inf
    found = replace(strategy, max_length=6)(Script(), endless.expand(3, -1, -1))
    assert all(len(h.tokens) == 6 for of_image in found for h in of_image)
    assert all(found)


@pytest.mark.parametrize("strategy", STRATEGIES[:-1], ids=lambda s: type(s).__name__)
def test_a_caption_may_end_at_once_if_min_length_lets_it(strategy: Decoding) -> None:
    silent = script(*[{END: 20.0, A: 1.0, B: 0.5, C: 0.0}] * 5)
    empty = replace(strategy, min_length=0, max_length=5)(Script(), silent, attention=True)[0][0]
    assert empty.tokens == []
    assert empty.attention is not None
    assert empty.attention.shape == (0, 5)
    one = replace(strategy, min_length=1, max_length=5)(Script(), silent, attention=True)[0][0]
    assert len(one.tokens) == 1
    assert one.attention is not None
    assert one.attention.tolist() == [[1, 0, 0, 0, 0]]


@ALL_STRATEGIES
def test_where_the_options_leave_no_word_the_caption_ends(strategy: Decoding) -> None:
    """Two words that may come once each cannot make the four words that are asked for."""
    two_words = script(*[{A: 1.0, B: 1.5, END: -3.0}] * 6, vocabulary=6)
    impossible = replace(strategy, min_length=4, max_length=6, no_repeat_ngram=1)
    for hypothesis in impossible(Script(), two_words)[0]:
        assert sorted(hypothesis.tokens) == [A, B]
        assert math.isfinite(hypothesis.log_prob)


def nucleus(
    scores: dict[int, float], temperature: float, top_k: int, top_p: float
) -> dict[int, float]:
    """The distribution that each word is drawn from, by hand."""
    ranked = sorted(scores, key=lambda word: -scores[word])
    ranked = ranked[: top_k or len(ranked)]
    odds = {word: math.exp(scores[word] / temperature) for word in ranked}
    kept: dict[int, float] = {}
    for word in ranked:
        if sum(kept.values()) / sum(odds.values()) < top_p:
            kept[word] = odds[word]
    return {word: share / sum(kept.values()) for word, share in kept.items()}


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.8), (0.7, 4, 0.85)],
)
def test_words_are_drawn_as_often_as_they_are_probable(
    temperature: float, top_k: int, top_p: float
) -> None:
    """Pairs of words, so that the second draw is seen not to depend on the first."""
    first = {4: 1.0, 5: 0.5, 6: 0.0, 7: -0.5, 8: -1.0}
    second = {4: -1.0, 5: 0.2, 6: 1.2, 7: 0.6, 8: -0.4}
    draws = 4000
    sample = Sample(
        **{**ANYTHING, "min_length": 2},
        max_length=2,
        captions=draws,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    (found,) = sample(Script(), script(first, second))
    counts = Counter((a, b) for a, b in (hypothesis.tokens for hypothesis in found))
    settings = temperature, top_k, top_p
    expected = {
        (a, b): draws * p * q
        for a, p in nucleus(first, *settings).items()
        for b, q in nucleus(second, *settings).items()
    }
    assert counts.keys() <= expected.keys()
    chi_square = sum((counts[pair] - n) ** 2 / n for pair, n in expected.items())
    freedom = len(expected) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_the_same_seed_draws_the_same_captions_and_another_seed_others() -> None:
    decoder, grid = random_decoder(30), random_grid(4)

    def captions(seed: int) -> list[list[list[int]]]:
        torch.manual_seed(torch.seed())  # draws do not depend on the generator of everything else
        found = Sample(captions=3, seed=seed)(decoder, grid)
        return [[hypothesis.tokens for hypothesis in of_image] for of_image in found]

    assert captions(1) == captions(1)
    assert captions(1) != captions(2)
    assert len({tuple(tokens) for tokens in captions(1)[0]}) == 3


@ALL_STRATEGIES
def test_decoding_leaves_the_modes_of_all_parts_as_they_were(strategy: Decoding) -> None:
    """Also where a user froze a part, and where decoding fails."""
    decoder, grid = random_decoder(), random_grid(2)
    decoder.train()
    decoder.dropout.eval()
    before = {name: module.training for name, module in decoder.named_modules()}
    seen: list[bool] = []
    decoder.output_words.register_forward_hook(
        lambda *_: seen.extend(module.training for module in decoder.modules())
    )
    strategy(decoder, grid)
    assert not any(seen)
    assert {name: module.training for name, module in decoder.named_modules()} == before

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    decoder.output_words.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        strategy(decoder, grid)
    assert {name: module.training for name, module in decoder.named_modules()} == before
    assert torch.is_grad_enabled()


@ALL_STRATEGIES
def test_decoding_in_training_writes_what_it_writes_in_evaluation(strategy: Decoding) -> None:
    decoder, grid = random_decoder(), random_grid(4)
    expected = strategy(decoder, grid)
    for ours, theirs in zip(strategy(decoder.train(), grid), expected, strict=True):
        assert_same(ours, theirs)


@ALL_STRATEGIES
@pytest.mark.parametrize("attention", ["additive", "multiplicative", "scaled_dot"])
def test_decoding_in_inference_mode_is_the_same(strategy: Decoding, attention: str) -> None:
    decoder, grid = random_decoder(attention=attention), random_grid(4)
    expected = strategy(decoder, grid, attention=True)
    with torch.inference_mode():
        found = strategy(decoder, grid.clone(), attention=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.attention, other.attention)


@ALL_STRATEGIES
@pytest.mark.parametrize("attention", ["additive", "multiplicative", "scaled_dot"])
def test_under_autocast_log_probabilities_stay_near(strategy: Decoding, attention: str) -> None:
    decoder, grid = random_decoder(end=2.0, attention=attention), random_grid(4)
    with torch.autocast("cpu", torch.bfloat16):
        found = strategy(decoder, grid, attention=True)
    for image, of_image in zip(grid, found, strict=True):
        for hypothesis in of_image:
            exact = log_prob_of(decoder, image, whole(hypothesis.tokens, strategy))
            assert hypothesis.log_prob == pytest.approx(exact, rel=0.05, abs=0.2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Greedy(max_length=0), "max_length=0"),
        (lambda: Greedy(min_length=-1), "min_length=-1"),
        (lambda: Beam(min_length=9, max_length=8), "min_length=9 and max_length=8"),
        (lambda: Beam(no_repeat_ngram=-1), "no_repeat_ngram=-1.*0 .off. or more"),
        (lambda: Beam(beam_size=0), "beam_size=0.*1 or more"),
        (lambda: Beam(required=("a", "a")), r"required=\[a,a\]: a word is there twice"),
        (lambda: Beam(required=("a", "b"), max_length=1), r"required=\[a,b\]: .* not fit into 1 w"),
        (lambda: Beam(required=("a", "b"), forbidden=("b",)), "'b' is among decoding.forbidden"),
        (lambda: DiverseBeam(beam_groups=4), "beam_groups=4: choose a number that divides .*=6"),
        (lambda: DiverseBeam(beam_groups=0), "beam_groups=0"),
        (lambda: DiverseBeam(diversity=-1.0), "diversity=-1.0: choose 0 or more"),
        (lambda: DiverseBeam(required=("a",)), r"required=\[a\]: diverse beam search cannot"),
        (lambda: MBR(beam_size=0), "beam_size=0 and samples=0"),
        (lambda: MBR(beam_size=-1, samples=2), "beam_size=-1"),
        (lambda: MBR(samples=2, required=("a",)), "samples=2: sampling cannot require words"),
        (lambda: MBR(samples=2, temperature=0.0), "temperature=0.0 must be above 0"),
        (lambda: MBR(utility="CIDR"), "utility=CIDR: choose one of BLEU-1, .*CIDEr"),
        (lambda: Sample(captions=0), "captions=0.*at least 1"),
        (lambda: Sample(temperature=0.0), "temperature=0.0.*above 0"),
        (lambda: Sample(top_k=-1), "top_k=-1.*at least 0"),
        (lambda: Sample(top_p=0.0), r"top_p=0.0.*\(0, 1\]"),
        (lambda: Sample(top_p=1.1), "top_p=1.1"),
    ],
)
def test_options_that_cannot_be_are_named(make: Callable[[], Decoding], words: str) -> None:
    with pytest.raises(CaptioningError, match=words):
        make()
