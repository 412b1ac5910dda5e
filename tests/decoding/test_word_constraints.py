"""Required and forbidden words, against enumeration of all captions of a small vocabulary."""

from typing import Any

import pytest
from test_decoding import (
    assert_same,
    broken,
    exhaustive,
    log_prob_of,
    random_decoder,
    random_grid,
    whole,
)

from captioning.decoding import MBR, Beam, Decoding, DiverseBeam, Greedy, Sample
from captioning.decoding.base import token_ids
from captioning.support.errors import CaptioningError

CONSTRAINTS: list[dict[str, Any]] = [
    {"required": ("4",)},
    {"required": ("5", "4")},
    {"required": ("4",), "forbidden": ("5",)},
    {"required": ("4", "5"), "min_length": 3, "allow_unknown": True},
    {"required": ("5",), "no_repeat_ngram": 0, "allow_repeats": True, "no_repeat_across": ("4",)},
]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("options", CONSTRAINTS, ids=str)
def test_a_beam_that_holds_everything_ranks_every_caption_with_the_words(
    options: dict[str, Any], length_penalty: float
) -> None:
    beam = Beam(**options, max_length=3, beam_size=4**3, length_penalty=length_penalty)
    (found,) = beam(random_decoder(6, end=4.0), random_grid(1))
    expected = exhaustive(6, beam)
    assert expected
    assert_same(found, expected)


@pytest.mark.parametrize("beam_size", [1, 2, 5])
@pytest.mark.parametrize("required", [("7",), ("8", "4", "11")], ids=str)
def test_small_beams_have_the_words_too(beam_size: int, required: tuple[str, ...]) -> None:
    """Also where the words are improbable, or have hardly enough room."""
    for max_length in (len(required), 7):
        decoder, grid = random_decoder(12, end=2.0), random_grid(12)
        beam = Beam(required=required, beam_size=beam_size, max_length=max_length)
        for image, found in zip(grid, beam(decoder, grid, attention=True), strict=True):
            assert 1 <= len(found) <= beam_size
            for each in found:
                assert broken(each.tokens, beam) == set()
                expected = log_prob_of(decoder, image, whole(each.tokens, beam))
                assert each.log_prob == pytest.approx(expected, abs=1e-4)
                assert each.attention is not None
                assert len(each.attention) == len(each.tokens)


def test_a_larger_beam_is_as_good_as_the_best_caption_with_the_word() -> None:
    beam = Beam(required=("5",), max_length=4, beam_size=4**3)
    (found,) = beam(random_decoder(6, end=4.0), random_grid(1))
    assert_same(found[:1], exhaustive(6, beam)[:1])


@pytest.mark.parametrize(
    "strategy",
    [
        Greedy(forbidden=("zebras",)),
        Sample(no_repeat_across=("zebras",)),
        Beam(required=("zebras",)),
        DiverseBeam(forbidden=("zebras",)),
        MBR(required=("zebras",)),
        MBR(forbidden=("zebras",), beam_size=0, samples=2),
    ],
    ids=str,
)
def test_a_word_that_is_not_in_the_vocabulary_is_named(strategy: Decoding) -> None:
    decoder = random_decoder(6)
    decoder.words = ["<pad>", "<start>", "<end>", "<unk>", "zebra", "dog"]
    for call in (
        lambda: strategy.check_words(decoder),
        lambda: strategy(decoder, random_grid(1)),
    ):
        with pytest.raises(
            CaptioningError, match=r"=\[zebras\]: 'zebras' is not in .*2 words; did you mean zebra"
        ):
            call()
    decoder.words = ()
    with pytest.raises(CaptioningError, match=r"the words of the decoder are not known"):
        strategy(decoder, random_grid(1))


def test_special_tokens_are_no_words() -> None:
    with pytest.raises(CaptioningError, match="'<end>' is not in"):
        token_ids(["<end>"], random_decoder(6), "forbidden")
