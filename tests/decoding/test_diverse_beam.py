"""Diverse beam search against algorithm 1 of Vijayakumar et al. 2016, written with lists."""

from collections import Counter

import pytest
from test_decoding import assert_same, broken, predictions, random_decoder, random_grid
from torch import Tensor

from captioning.decoding import Beam, DiverseBeam, Hypothesis
from captioning.models.decoders.base import Decoder
from captioning.support.special_tokens import END, UNK


def textbook(decoder: Decoder, image: Tensor, options: DiverseBeam) -> list[Hypothesis]:
    live: list[list[tuple[list[int], float]]] = [[([], 0.0)] for _ in range(options.beam_groups)]
    found: list[list[Hypothesis]] = [[] for _ in live]
    size = options.beam_size // options.beam_groups
    for length in range(1, options.max_length + 1):
        chosen: Counter[int] = Counter()  # the words at this step of the groups before
        for group, beginnings in enumerate(live):
            candidates = []
            for tokens, total in beginnings:
                following = predictions(decoder, image, [*tokens, END])[-1].tolist()
                for word in [END, *range(UNK, decoder.vocabulary_size)]:
                    longer = tokens if word == END else [*tokens, word]
                    if not broken(longer, options) - ({"min_length"} if word != END else set()):
                        log_prob = total + following[word]
                        penalty = options.diversity * chosen[word]
                        candidates.append((log_prob - penalty, [*tokens, word], log_prob))
            candidates.sort(key=lambda candidate: -candidate[0])
            live[group] = []
            for _, tokens, total in candidates[: size - len(found[group])]:
                chosen[tokens[-1]] += 1
                if tokens[-1] == END or length == options.max_length:
                    score = total / length**options.length_penalty
                    words = [token for token in tokens if token != END]
                    found[group].append(Hypothesis(words, total, score, None))
                else:
                    live[group].append((tokens, total))
    return sorted((each for of in found for each in of), key=lambda each: -each.score)


@pytest.mark.parametrize(("beam_size", "groups"), [(4, 2), (6, 3), (3, 3), (4, 1)])
@pytest.mark.parametrize("diversity", [0.0, 0.7, 4.0])
def test_captions_are_the_textbooks(beam_size: int, groups: int, diversity: float) -> None:
    decoder, grid = random_decoder(9, end=3.0), random_grid(4)
    search = DiverseBeam(beam_size=beam_size, beam_groups=groups, diversity=diversity, max_length=5)
    for image, found in zip(grid, search(decoder, grid), strict=True):
        assert_same(found, textbook(decoder, image, search))


def test_one_group_is_beam_search_and_several_find_more_different_captions() -> None:
    decoder, grid = random_decoder(20, end=1.0), random_grid(4)
    beam = Beam(beam_size=6)(decoder, grid)
    one = DiverseBeam(beam_size=6, beam_groups=1)(decoder, grid)
    for ours, theirs in zip(one, beam, strict=True):
        assert_same(ours, theirs)
    diverse = DiverseBeam(beam_size=6, beam_groups=6, diversity=50.0)(decoder, grid)

    def first_words(found: list[list[Hypothesis]]) -> int:
        return sum(len({each.tokens[0] for each in of}) for of in found)

    assert first_words(diverse) == 24
    assert first_words(beam) < 24
