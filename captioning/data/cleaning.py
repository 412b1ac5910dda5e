"""The cleaning of captions.

Captions are cleaned for *training* only. The metrics read the raw references and tokenise them
themselves, so a cleaning step cannot make a score look better than it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


class _PunctuationToSpace(dict[int, str | int]):
    """A `str.translate` table that is filled when a character is first looked up.

    Letters, combining marks and digits of any script are kept, and so are the characters that can
    be part of a word or a number; whether they are is decided later, by their neighbours (see
    `Cleaner`). Every other character becomes a space.
    """

    def __missing__(self, code: int) -> str | int:
        kept = chr(code) in "'-.,:/" or unicodedata.category(chr(code))[0] in "LMN"
        self[code] = code if kept else " "
        return self[code]


_PUNCTUATION_TO_SPACE = _PunctuationToSpace()
_PUNCTUATION_TO_SPACE.update(str.maketrans("‘’ʼ`´‐‑", "'''''--"))  # typographic variants
_NOT_INSIDE_A_NUMBER = re.compile(r"(?<!\d)[.,:/]|[.,:/](?!\d)|--+")
_CLITIC = re.compile(r"(.*?)(n't|'(?:s|m|d|re|ve|ll))", re.IGNORECASE)


def _words(text: str) -> Iterable[str]:
    text = _NOT_INSIDE_A_NUMBER.sub(" ", text.translate(_PUNCTUATION_TO_SPACE))
    for word in text.split():
        clitic = _CLITIC.fullmatch(word) if "'" in word else None
        stem = (clitic[1] if clitic else word).strip("'-.,:/")
        if stem:
            yield stem
        if clitic:
            yield clitic[2]


@dataclass(frozen=True)
class Cleaner:
    """Turns a raw caption into words with one space between them; call it on a caption.

    The defaults give the same words as the metrics' own tokeniser (Stanford's PTB, lower case,
    punctuation removed): of Flickr8k's 40,460 captions, all but 44 give the same tokens. Most of
    these 44 have a "#" or "&", which the metrics count as words and a model need not learn.
    Deleting every punctuation mark instead turns "t-shirt" into "tshirt" and "'s" into "s", differs
    on 1,402 captions, and teaches words that no reference has.

    A word keeps its inner hyphens and apostrophes ("black-and-white", "o'clock") and a number its
    inner points ("3.5", "10,000", "1/2"); the clitics 's, n't, 'm, 'd, 're, 've and 'll become
    words of their own ("dog's" -> "dog 's"). Text is first put into Unicode's composed form.

    Attributes:
        lowercase: Put everything into lower case.
        strip_punctuation: Remove punctuation and symbols of any script, as above. Without it the
            caption is only split at white space.
        drop_one_letter_words: Drop words of a single letter. Tutorials do so. It is off by default,
            since without "a" BLEU's brevity penalty and all its n-gram precisions get worse.
        drop_numbers: Drop words with a digit in them ("2", "4-wheeler").
    """

    lowercase: bool = True
    strip_punctuation: bool = True
    drop_one_letter_words: bool = False
    drop_numbers: bool = False

    def __call__(self, caption: str) -> str:
        """Clean one caption.

        >>> Cleaner()("A dog's T-shirt , 2 sizes too big !")
        "a dog 's t-shirt 2 sizes too big"
        """
        text = unicodedata.normalize("NFC", caption)
        if self.lowercase:
            text = text.lower()
        words = _words(text) if self.strip_punctuation else text.split()
        return " ".join(
            word
            for word in words
            if not (self.drop_one_letter_words and len(word) == 1 and word.isalpha())
            and not (self.drop_numbers and any(char.isdigit() for char in word))
        )


def clean_descriptions(
    descriptions: Mapping[str, Iterable[str]], cleaner: Cleaner
) -> dict[str, list[str]]:
    """Clean every caption; a caption without any word left is kept as the empty string."""
    return {image: [cleaner(text) for text in texts] for image, texts in descriptions.items()}
