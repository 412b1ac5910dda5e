"""Words and their ids."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from captioning.data.cleaning import Cleaner
from captioning.data.descriptions import load_descriptions
from captioning.data.vocabulary import Vocabulary, build_vocabulary, extend_vocabulary
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import END, PAD, SPECIAL_WORDS, START, UNK


def test_the_vocabulary_orders_by_count_then_alphabet_whatever_the_order_of_captions() -> None:
    captions = ["b b a a c", "c d", "a zebra <unk> <end>"]
    vocabulary = build_vocabulary(captions, min_count=2)
    assert vocabulary.words == ("a", "b", "c")
    rng = random.Random(0)
    for _ in range(5):
        rng.shuffle(captions)
        assert build_vocabulary([text.split() for text in captions], min_count=2) == vocabulary
    assert build_vocabulary(captions, min_count=1, max_size=2).words == ("a", "b")
    assert "<unk>" not in build_vocabulary(captions, min_count=1).words


def test_the_vocabulary_has_every_frequent_word_of_real_captions(flickr8k_mini: Path) -> None:
    descriptions = load_descriptions(flickr8k_mini / "Flickr8k_text" / "Flickr8k.token.txt")
    texts = [Cleaner()(text) for captions in descriptions.values() for text in captions]
    counts = Counter(" ".join(texts).split())
    vocabulary = build_vocabulary(texts, min_count=5)
    assert set(vocabulary.words) == {word for word, count in counts.items() if count >= 5}
    assert len(vocabulary) == len(vocabulary.words) + 4


def test_of_words_of_equal_count_the_first_of_the_alphabet_are_kept() -> None:
    """In whichever order the captions come: a vocabulary that is cut is the same for everybody."""
    captions = ["zebra apple", "mango apple zebra", "mango kiwi"]
    for texts in (captions, captions[::-1]):
        assert build_vocabulary(texts, min_count=2).words == ("apple", "mango", "zebra")
        assert build_vocabulary(texts, min_count=2, max_size=2).words == ("apple", "mango")


def test_a_word_needs_five_occurrences_by_default() -> None:
    captions = ["five five five five five four four four four"]
    assert build_vocabulary(captions).words == ("five",)


def test_the_ids_of_the_special_tokens_are_those_of_every_checkpoint() -> None:
    assert (PAD, START, END, UNK) == (0, 1, 2, 3)
    assert SPECIAL_WORDS == ("<pad>", "<start>", "<end>", "<unk>")
    assert Vocabulary(["dog"]).encode("dog cat") == [START, 4, UNK, END]


def test_encode_and_decode() -> None:
    vocabulary = Vocabulary(["a", "dog", "'s"])
    assert vocabulary.encode("a dog barks") == [1, 4, 5, 3, 2]
    assert vocabulary.encode(["a", "dog", "'s"], max_length=2) == [1, 4, 5, 2]
    assert vocabulary.encode("") == [1, 2]
    assert vocabulary.decode([1, 4, 5, 3, 2, 4, 0]) == "a dog <unk>"
    assert vocabulary.decode([4, 0, 6]) == "a 's"
    assert "dog" in vocabulary
    assert "<end>" not in vocabulary


@pytest.mark.parametrize("special", ["<pad>", "<start>", "<end>", "<unk>"])
def test_text_cannot_spell_a_special_token(special: str) -> None:
    assert Vocabulary(["a"]).encode(f"a {special} a") == [1, 4, 3, 4, 2]
    with pytest.raises(CaptioningError, match=special):
        Vocabulary(["a", special])


@pytest.mark.parametrize("index", [-1, 5])
def test_an_id_outside_the_vocabulary_is_an_error(index: int) -> None:
    with pytest.raises(IndexError):
        Vocabulary(["a"]).decode([4, index])


@pytest.mark.parametrize("words", [["a", "b", "a"], ["a b"], [""], ["a\u2028"]])
def test_impossible_words_are_refused(words: list[str]) -> None:
    with pytest.raises(CaptioningError):
        Vocabulary(words)


def test_a_vocabulary_comes_back_from_its_file_and_from_plain_data(tmp_path: Path) -> None:
    vocabulary = Vocabulary(["a", "naïve", "\u200bodd", '"', "\\"])
    vocabulary.save(tmp_path / "vocabulary.json")
    for copy in (Vocabulary.load(tmp_path / "vocabulary.json"), Vocabulary(vocabulary.to_list())):
        assert copy == vocabulary
        assert copy.fingerprint == vocabulary.fingerprint
    assert Vocabulary(["naïve", "a"]).fingerprint != Vocabulary(["a", "naïve"]).fingerprint


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", ":1: not JSON"),
        ("[]", "'words'"),
        ('{"specials": ["<pad>", "<start>", "<end>", "<unk>"], "words": [1]}', "'words'"),
        ('{"specials": ["<s>"], "words": ["a"]}', "'specials'"),
        ('{"specials": ["<pad>", "<start>", "<end>", "<unk>"], "words": ["a", "a"]}', "twice"),
    ],
)
def test_a_malformed_vocabulary_file_is_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(CaptioningError, match=says) as error:
        Vocabulary.load(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"min_count": 0}, "min_count"), ({"max_size": 0}, "max_size"), ({"min_count": 9}, "lower")],
)
def test_limits_that_leave_no_vocabulary_are_refused(options: dict[str, int], says: str) -> None:
    with pytest.raises(CaptioningError, match=says):
        build_vocabulary(["a dog"], **options)


def test_a_vocabulary_is_extended_by_frequent_words_after_its_own() -> None:
    own = Vocabulary(["dog", "zebra"])
    captions = ["kiwi apple dog", "apple kiwi <unk>", "mango mango mango dog dog"]
    longer = extend_vocabulary(own, captions, min_count=2)
    assert longer.words == ("dog", "zebra", "mango", "apple", "kiwi")
    assert extend_vocabulary(own, captions, 2, max_size=1).words == ("dog", "zebra", "mango")
    assert extend_vocabulary(own, captions, min_count=4) == own
    with pytest.raises(CaptioningError, match="min_count"):
        extend_vocabulary(own, captions, min_count=0)
