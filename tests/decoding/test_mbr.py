"""Minimum Bayes risk against its formula, written as loops over pycocoevalcap's scores."""

import math

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from test_decoding import random_decoder, random_grid

from captioning.decoding import MBR, Beam, Hypothesis, Sample
from captioning.metrics.cider import CiderD
from captioning.support.errors import CaptioningError

DOCUMENTS = {str(n): [f"{n} {n + 1} {5 + n % 3}", "4 5 6 7"] for n in range(4, 12)}


def textbook(
    candidates: list[Hypothesis], mbr: MBR, documents: dict[str, list[str]]
) -> dict[tuple[int, ...], float]:
    """The expected utility of each candidate."""
    texts = [" ".join(map(str, each.tokens)) for each in candidates]
    odds = [
        math.exp(mbr.sharpness * each.log_prob / (len(each.tokens) + 1) ** mbr.length_penalty)
        for each in candidates
    ]
    expected = {}
    for each, text in zip(candidates, texts, strict=True):
        risk = 0.0
        for other, weight in zip(texts, odds, strict=True):
            if mbr.utility == "BLEU-4":
                _, scores = Bleu().compute_score({0: [other]}, {0: [text]}, verbose=0)
                utility = scores[3][0]
            else:
                counted = {n: [t.split() for t in of] for n, of in documents.items()}
                scorer = CiderD({0: [other.split()]}, counted)
                utility = float(scorer([0], [text.split()])[0])
            risk += weight / sum(odds) * utility
        expected[tuple(each.tokens)] = risk
    return expected


@pytest.mark.parametrize("utility", ["CIDEr", "BLEU-4"])
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("beam_size", "samples"), [(6, 0), (0, 8), (4, 5)])
def test_hypotheses_are_ranked_by_their_expected_utility(
    utility: str, sharpness: float, beam_size: int, samples: int
) -> None:
    decoder, grid = random_decoder(end=3.0), random_grid(3)
    mbr = MBR(
        beam_size=beam_size, samples=samples, utility=utility, sharpness=sharpness, seed=1,
        temperature=0.8, length_penalty=0.7,
    )  # fmt: skip
    mbr.set_documents(DOCUMENTS)
    found = mbr(decoder, grid)
    beams = Beam(beam_size=max(beam_size, 1))(decoder, grid)
    samples_of = Sample(captions=max(samples, 1), temperature=0.8, seed=1)(decoder, grid)
    for image, ours in enumerate(found):
        candidates = beams[image][:beam_size] + samples_of[image][:samples]
        expected = textbook(candidates, mbr, DOCUMENTS)
        assert {tuple(each.tokens) for each in ours} == expected.keys()
        assert [each.score for each in ours] == sorted(expected.values(), reverse=True) or [
            each.score for each in ours
        ] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-6)
        for each in ours:
            assert each.score == pytest.approx(expected[tuple(each.tokens)], abs=1e-6)
    assert any(of[0].tokens != beams[n][0].tokens for n, of in enumerate(found)), "no choice"


def test_document_frequencies_are_of_the_train_split_or_none() -> None:
    decoder, grid = random_decoder(end=3.0), random_grid(5)

    def scores(frequencies: str, documents: bool) -> list[float]:
        mbr = MBR(beam_size=6, document_frequencies=frequencies)  # type: ignore[arg-type]
        if documents:
            mbr.set_documents(DOCUMENTS)
        return [each.score for of in mbr(decoder, grid) for each in of]

    alike = scores("none", False)
    assert scores("none", True) == scores("auto", False) == alike
    assert scores("auto", True) == scores("train", True) != alike
    with pytest.raises(CaptioningError, match="frequencies=train: the captions of the train split"):
        scores("train", False)


def test_an_images_caption_does_not_depend_on_the_others() -> None:
    decoder, grid = random_decoder(end=3.0), random_grid(4)
    together = MBR(beam_size=5)(decoder, grid)
    for image, of in zip(grid, together, strict=True):
        (alone,) = MBR(beam_size=5)(decoder, image[None])
        assert [each.tokens for each in alone] == [each.tokens for each in of]


def test_without_words_the_tokens_are_compared() -> None:
    decoder, grid = random_decoder(end=3.0), random_grid(2)
    expected = MBR(beam_size=5)(decoder, grid)
    decoder.words = ()
    assert MBR(beam_size=5)(decoder, grid) == expected


def test_required_words_are_in_every_caption() -> None:
    decoder, grid = random_decoder(end=3.0), random_grid(2)
    for of in MBR(beam_size=4, required=("7",))(decoder, grid):
        assert of
        assert all(7 in each.tokens for each in of)
