"""CIDEr-D as a reward, beside the original scorer."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider

from captioning.metrics import cider
from captioning.metrics.cider import CiderD
from captioning.support.errors import CaptioningError

TOLERANCE = 1e-9

Captions = dict[str, list[list[str]]]


def original(hypotheses: dict[str, list[str]], references: Captions) -> dict[str, float]:
    """Each image's score by pycocoevalcap."""
    _, scores = Cider().compute_score(
        {image: [" ".join(words) for words in captions] for image, captions in references.items()},
        {image: [" ".join(hypotheses[image])] for image in references},
    )
    return dict(zip(references, scores.tolist(), strict=True))


@pytest.fixture(scope="module")
def people(real_captions: dict[str, list[str]]) -> Captions:
    return {
        image: [caption.lower().split() for caption in captions]
        for image, captions in real_captions.items()
    }


def test_real_captions_score_as_with_the_original(people: Captions) -> None:
    hypotheses = {image: captions[0] for image, captions in people.items()}
    references = {image: captions[1:] for image, captions in people.items()}
    expected = original(hypotheses, references)
    found = CiderD(references)(list(references), list(hypotheses.values()))
    np.testing.assert_allclose(found, list(expected.values()), rtol=0, atol=TOLERANCE)
    assert found.mean() > 0.5


def test_a_part_of_the_images_is_scored_by_the_weights_of_all(people: Captions) -> None:
    hypotheses = {image: captions[0] for image, captions in people.items()}
    references = {image: captions[1:] for image, captions in people.items()}
    some = list(references)[5:50:3]
    expected = original(hypotheses, references)
    reward = CiderD({image: references[image] for image in some}, documents=references)
    found = reward(some, [hypotheses[image] for image in some])
    np.testing.assert_allclose(found, [expected[image] for image in some], rtol=0, atol=TOLERANCE)


WORDS = st.lists(st.sampled_from(list("abcde")), max_size=14)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=6)), min_size=1, max_size=6))
def test_made_up_captions_score_as_with_the_original(
    corpus: list[tuple[list[str], list[list[str]]]],
) -> None:
    references = {str(n): captions for n, (_, captions) in enumerate(corpus)}
    hypotheses = {str(n): words for n, (words, _) in enumerate(corpus)}
    if any(map(any, references.values())):  # the original fails where no reference has a word
        expected = list(original(hypotheses, references).values())
    else:
        expected = [0.0] * len(corpus)
    found = CiderD(references)(list(references), list(hypotheses.values()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_captions_score_each_other_as_they_do_one_by_one(people: Captions) -> None:
    captions = [*[of[0] for of in people.values()][:6], [], ["dog"], ["dog"]]
    for documents in (people, {}):
        scorer = CiderD({n: [words] for n, words in enumerate(captions)}, documents)
        expected = [scorer(range(len(captions)), [words] * len(captions)) for words in captions]
        found = CiderD({}, documents).pairwise(captions)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
        assert found[-1, -2] > 0
    assert CiderD({}).pairwise([]).shape == (0, 0)


def test_an_image_has_as_many_hypotheses_as_it_likes_and_words_are_anything(
    people: Captions,
) -> None:
    numbers: dict[str, int] = {}
    numbered = {
        image: [[numbers.setdefault(word, len(numbers)) for word in words] for words in captions]
        for image, captions in people.items()
    }
    first, second = list(people)[:2]
    by_word = CiderD(people)([first, second, first], [*people[first][:2], people[second][0]])
    by_number = CiderD(numbered)(
        [first, second, first], [*numbered[first][:2], numbered[second][0]]
    )
    assert by_word.tolist() == by_number.tolist()
    assert by_word[0] > by_word[2]


def test_bad_input_is_refused_by_name() -> None:
    with pytest.raises(CaptioningError, match=r"'1\.jpg' has no reference captions"):
        CiderD({"1.jpg": []})
    reward = CiderD({"1.jpg": [["a"]]})
    with pytest.raises(CaptioningError, match=r"'2\.jpg' is captioned but has no references"):
        reward(["2.jpg"], [["a"]])
    with pytest.raises(ValueError, match="argument"):
        reward(["1.jpg"], [["a"], ["b"]])


def test_the_docstrings_example_runs() -> None:
    assert doctest.testmod(cider) == (0, 2)
