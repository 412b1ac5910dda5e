"""Captions and references as people have them, and the mistakes that people make with them."""

import doctest
import inspect
from typing import Any

import pytest

from captioning.metrics import CaptionScorer, CaptionScores, score_captions, torchmetric
from captioning.support.errors import CaptioningError

# Not as the tests' type checks have it: what is tested here is what a user without them is told.
score: Any = inspect.unwrap(score_captions)

HYPOTHESES = {"1.jpg": "a dog runs", "2.jpg": "two men sit"}
REFERENCES = {"1.jpg": ["A dog runs.", "The dog is running."], "2.jpg": ["Two men sit there."]}
PAIRS = [
    ("1.jpg", "A dog runs."), ("2.jpg", "Two men sit there."), ("1.jpg", "The dog is running."),
]  # fmt: skip


@pytest.mark.parametrize(
    "references",
    [
        PAIRS,
        iter(PAIRS),
        [*REFERENCES.items()],
        [list(pair) for pair in PAIRS],  # as JSON has them
        {image: tuple(captions) for image, captions in REFERENCES.items()},
    ],
    ids=["pairs", "iterator", "pairs with lists", "lists", "tuples"],
)
def test_pairs_and_dictionaries_give_the_same_scores(references: Any) -> None:
    expected = score_captions(HYPOTHESES, REFERENCES, ["BLEU", "CIDEr"])
    assert score(iter(HYPOTHESES.items()), references, ["BLEU", "CIDEr"]) == expected


WRONG = [
    (HYPOTHESES, {"1.jpg": "A dog runs.", "2.jpg": ["Two men."]},
     r"references of image '1\.jpg' are a plain string: give .* list .*\['A dog runs\.'\]"),
    (REFERENCES, HYPOTHESES, "hypotheses and the references are swapped"),
    (PAIRS, [*HYPOTHESES.items()], "hypotheses and the references are swapped"),
    (REFERENCES, [*HYPOTHESES.items()], r"image '1\.jpg' is of type list, not a string"),
    (PAIRS, PAIRS, r"image '1\.jpg' has two captions"),
    ({"1.jpg": ["a dog"]}, {"1.jpg": ["a dog"]}, r"image '1\.jpg' is of type list, not a string"),
    ({"1.jpg": float("nan")}, {"1.jpg": ["a dog"]}, r"image '1\.jpg' is the number nan"),
    (HYPOTHESES, {"1.jpg": ["a dog", None], "2.jpg": ["a"]}, r"reference .* '1\.jpg' is None"),
    (HYPOTHESES, {"1.jpg": 3, "2.jpg": ["a"]}, r"'1\.jpg' are of type int, not a list of captions"),
    (["a dog runs"], [["A dog runs."]], "entry 1 of the hypotheses is the string 'a dog runs'"),
    (["ab"], [("1.jpg", "a")], "entry 1 of the hypotheses .* not a pair"),
    ("a dog runs", {"1.jpg": ["a dog"]}, "hypotheses are the string 'a dog runs'"),
    (HYPOTHESES, None, "references are None: give a dictionary"),
]  # fmt: skip


@pytest.mark.parametrize(("hypotheses", "references", "sentence"), WRONG)
def test_what_cannot_be_scored_is_refused_with_a_sentence(
    hypotheses: Any, references: Any, sentence: str
) -> None:
    with pytest.raises(CaptioningError, match=sentence):
        score(hypotheses, references, ["BLEU"])


def test_a_plain_string_is_refused_wherever_references_are_given() -> None:
    for scorer in (CaptionScorer, CaptionScores):
        with pytest.raises(CaptioningError, match="plain string: give a list"):
            scorer({"1.jpg": "a dog runs"}, ["BLEU"])  # type: ignore[arg-type]


def test_the_metric_takes_batches() -> None:
    metric = CaptionScores(PAIRS, ["BLEU"])
    with pytest.raises(CaptioningError, match=r"image_ids is a plain string, '1\.jpg'"):
        metric.update("1.jpg", ["a dog"])
    with pytest.raises(CaptioningError, match="captions is a plain string, 'a dog'"):
        metric.update(["1.jpg"], "a dog")
    metric.update(list(HYPOTHESES), list(HYPOTHESES.values()))
    assert metric.scores() == score_captions(HYPOTHESES, REFERENCES, ["BLEU"])


def test_the_example_of_the_metric_runs() -> None:
    assert doctest.testmod(torchmetric).failed == 0
