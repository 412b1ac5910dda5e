"""Text: caption files, the cleaning of captions, and the vocabulary.

Captions are cleaned for *training* only. The metrics read the raw references and tokenise them
themselves, so a cleaning step cannot make a score look better than it is.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from captioning.support.errors import CaptioningError, shortened
from captioning.support.files import atomic_write_json, atomic_write_text
from captioning.support.reading import load_json, load_lines
from captioning.support.special_tokens import END, SPECIAL_WORDS, START, UNK


def numbered_lines(path: str | Path) -> list[tuple[int, str]]:
    r"""The lines of a file that are not blank, with their numbers (from 1).

    Lines end at ``\n`` alone; see :func:`captioning.support.reading.load_lines`.
    """
    lines = enumerate(load_lines(path), start=1)
    return [(number, line) for number, line in lines if line.strip()]


class TokenLine(NamedTuple):
    """One line of a token file: ``image#number<TAB>caption``."""

    line: int
    image: str
    number: int
    caption: str


_TOKEN_LINE = re.compile(r"([^\t]+)#([0-9]{1,9})\t(.*)", re.DOTALL)


def read_token_file(path: str | Path) -> list[TokenLine]:
    """Read a token file (``Flickr8k.token.txt``); trailing white space of captions is stripped.

    An empty caption is returned as it is: the caller decides what to do about it.

    Raises:
        CaptioningError: a malformed line, or a caption number that an image has twice.
    """
    lines: list[TokenLine] = []
    first_seen: dict[tuple[str, int], int] = {}
    for line, text in numbered_lines(path):
        match = _TOKEN_LINE.fullmatch(text)
        if match is None:
            raise CaptioningError(
                f"{path}:{line}: expected 'image.jpg#0<TAB>caption', found {text[:60]!r}."
            )
        image, number = match[1], int(match[2])
        other = first_seen.setdefault((image, number), line)
        if other != line:
            raise CaptioningError(
                f"{path}:{line}: caption {number} of {image} is already on line {other}; "
                "number the captions of an image differently."
            )
        lines.append(TokenLine(line, image, number, match[3].rstrip()))
    return lines


def load_descriptions(path: str | Path) -> dict[str, list[str]]:
    """Map each image of a token file to its raw captions, in the order of their numbers.

    Raises:
        CaptioningError: a malformed line, a repeated caption number or an empty caption.
    """
    numbered: dict[str, list[tuple[int, str]]] = {}
    for line, image, number, caption in read_token_file(path):
        if not caption:
            raise CaptioningError(f"{path}:{line}: the caption is empty; write one or remove it.")
        numbered.setdefault(image, []).append((number, caption))
    return {
        image: [caption for _, caption in sorted(captions)] for image, captions in numbered.items()
    }


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


_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{8}")
"""Eight letters of Thai, Lao, Burmese, Khmer, Japanese or Chinese without a space."""


def doubts(descriptions: Mapping[str, Iterable[str]]) -> list[str]:
    """Sentences about raw captions that can be read, but hardly be what the user wants.

    These are captions in a script without spaces, since words are split at spaces in training and
    scoring; and captions without a letter or digit, which are references of no words.

    Args:
        descriptions: The raw captions by image id.
    """
    captions = [(image, text) for image, texts in descriptions.items() for text in texts]
    unspaced = [text for _, text in captions if _UNSPACED.search(text)]
    wordless = [image for image, text in captions if not any(map(str.isalnum, text))]
    found = []
    if 2 * len(unspaced) > len(captions):
        found.append(
            f"{len(unspaced):,} of {len(captions):,} captions have no spaces between their words, "
            f"such as {shortened(unspaced[0], 30)!r}; words are split at spaces, so put spaces "
            "between them with a word segmenter first."
        )
    if wordless:
        found.append(
            f"Captions without a word ({len(wordless):,}): of {shortened(wordless[0], 80)}, for "
            "example; as references of no words they raise BLEU."
        )
    return found


def clean_descriptions(
    descriptions: Mapping[str, Iterable[str]], cleaner: Cleaner
) -> dict[str, list[str]]:
    """Clean every caption; a caption without any word left is kept as the empty string."""
    return {image: [cleaner(text) for text in texts] for image, texts in descriptions.items()}


def save_descriptions(path: str | Path, descriptions: Mapping[str, Sequence[str]]) -> None:
    """Write one caption a line, ``image<TAB>caption``; `load_saved_descriptions` reads it back.

    Raises:
        CaptioningError: an image name with a tab or line end, an image without captions, or a
            caption that is not single-spaced (clean it first).
    """
    lines: list[str] = []
    for image, captions in descriptions.items():
        if not image.strip() or any(char in image for char in "\t\n\r"):
            raise CaptioningError(f"{path}: {image!r} cannot be written as an image's name.")
        if not captions:
            raise CaptioningError(f"{path}: {image} has no caption to write; leave the image out.")
        for caption in captions:
            if caption != " ".join(caption.split()):
                raise CaptioningError(
                    f"{path}: the caption {caption[:60]!r} of {image} is not single-spaced; "
                    "clean captions before saving them."
                )
            lines.append(f"{image}\t{caption}\n")
    atomic_write_text(path, "".join(lines))


def load_saved_descriptions(path: str | Path) -> dict[str, list[str]]:
    """Read what `save_descriptions` wrote.

    Raises:
        CaptioningError: the file cannot be read, or a line has no image or no tab.
    """
    descriptions: dict[str, list[str]] = {}
    for line, text in numbered_lines(path):
        image, tab, caption = text.partition("\t")
        if not tab or not image.strip():
            raise CaptioningError(
                f"{path}:{line}: expected 'image<TAB>caption', found {text[:60]!r}."
            )
        descriptions.setdefault(image, []).append(caption)
    return descriptions


class Vocabulary:
    """Words and their ids: first the four special tokens, then the words.

    The special tokens are those of :mod:`captioning.support.special_tokens`. Text is never encoded
    as one of them: a caption that has ``<end>`` in it has an unknown word there.

    Args:
        words: The words in the order of their ids, without the special tokens.

    Raises:
        CaptioningError: a word is empty, repeated, spelt like a special token, or has white space
            in it.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._ids = {word: len(SPECIAL_WORDS) + index for index, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            twice = next(word for word, count in Counter(self.words).items() if count > 1)
            raise CaptioningError(f"The vocabulary has the word {twice!r} twice.")
        for word in self.words:
            if word.split() != [word] or word in SPECIAL_WORDS:
                raise CaptioningError(f"{word!r} cannot be a word of a vocabulary.")

    def __len__(self) -> int:
        """The number of ids, special tokens included."""
        return len(SPECIAL_WORDS) + len(self.words)

    def __contains__(self, word: object) -> bool:
        """Whether ``word`` has an id of its own."""
        return word in self._ids

    def __eq__(self, other: object) -> bool:
        """Vocabularies with the same words in the same order are equal."""
        return isinstance(other, Vocabulary) and self.words == other.words

    def __hash__(self) -> int:
        return hash(self.words)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self.words)} words: {', '.join(self.words[:5])}, ...)"

    def encode(self, caption: str | Sequence[str], max_length: int | None = None) -> list[int]:
        """Ids of a cleaned caption (or its words), between start and end.

        Args:
            caption: Words, or a string that is split at white space.
            max_length: The most words to keep; the result has two more ids, start and end.
        """
        words = caption.split() if isinstance(caption, str) else caption
        ids = (self._ids.get(word, UNK) for word in words[:max_length])
        return [START, *ids, END]

    def decode(self, ids: Iterable[int]) -> str:
        """The words up to the first end token, without padding and start tokens.

        An unknown word is written ``<unk>``.

        Args:
            ids: Integers, or a one-dimensional tensor of them.

        Raises:
            IndexError: an id that the vocabulary does not have.
        """
        words: list[str] = []
        for index in map(int, ids):
            if index == END:
                break
            if not 0 <= index < len(self):
                raise IndexError(f"id {index} is not among the vocabulary's {len(self)}")
            if index == UNK:
                words.append(SPECIAL_WORDS[UNK])
            elif index >= len(SPECIAL_WORDS):
                words.append(self.words[index - len(SPECIAL_WORDS)])
        return " ".join(words)

    def to_list(self) -> list[str]:
        """The words as plain data for a checkpoint; ``Vocabulary(list)`` is the way back."""
        return list(self.words)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all tokens in the order of their ids."""
        return hashlib.sha256(json.dumps([*SPECIAL_WORDS, *self.words]).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write ``vocabulary.json``: the special tokens, for people to see, and the words."""
        atomic_write_json(path, {"specials": list(SPECIAL_WORDS), "words": self.to_list()})

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read what `save` wrote.

        Raises:
            CaptioningError: the file cannot be read or is not such a file.
        """
        content = load_json(path)
        words = content.get("words") if isinstance(content, dict) else None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise CaptioningError(f"{path}: not a vocabulary: 'words' should be a list of strings.")
        if content.get("specials") != list(SPECIAL_WORDS):
            raise CaptioningError(f"{path}: 'specials' should be {list(SPECIAL_WORDS)}.")
        try:
            return cls(words)
        except CaptioningError as error:
            raise CaptioningError(f"{path}: {error}") from error


def build_vocabulary(
    captions: Iterable[str | Sequence[str]], min_count: int = 5, max_size: int | None = None
) -> Vocabulary:
    """Make the vocabulary of cleaned captions, which should be those of the training split alone.

    Words are ordered by descending count, words of equal count alphabetically, so that the same
    captions in any order give the same vocabulary. A word spelt like a special token gets no id.

    Args:
        captions: Cleaned captions, as strings or as lists of words.
        min_count: How often a word must occur to get an id.
        max_size: The most words to keep, special tokens not counted.

    Raises:
        CaptioningError: a limit below 1, or no word is left.
    """
    for name, limit in (("min_count", min_count), ("max_size", max_size)):
        if limit is not None and limit < 1:
            raise CaptioningError(f"The vocabulary's {name} should be at least 1, not {limit}.")
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(caption.split() if isinstance(caption, str) else caption)
    frequent = [
        word for word, count in counts.items() if count >= min_count and word not in SPECIAL_WORDS
    ]
    if not frequent:
        raise CaptioningError(
            f"None of the {len(counts)} words is seen {min_count} times; lower data.min_count."
        )
    return Vocabulary(sorted(frequent, key=lambda word: (-counts[word], word))[:max_size])


def extend_vocabulary(
    vocabulary: Vocabulary,
    captions: Iterable[str | Sequence[str]],
    min_count: int = 5,
    max_size: int | None = None,
) -> Vocabulary:
    """Append the words of captions that a vocabulary lacks; the ids of its own words stay.

    Args:
        vocabulary: The vocabulary, which is not changed.
        captions: Cleaned captions, as for :func:`build_vocabulary`.
        min_count: How often a new word must occur to get an id.
        max_size: The most new words.
    """
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(caption.split() if isinstance(caption, str) else caption)
    new = {word: count for word, count in counts.items() if word not in vocabulary}
    if not any(count >= min_count and word not in SPECIAL_WORDS for word, count in new.items()):
        return vocabulary
    added = build_vocabulary([[word] * count for word, count in new.items()], min_count, max_size)
    return Vocabulary([*vocabulary.words, *added.words])


class Coverage(NamedTuple):
    """How well a vocabulary covers some captions.

    Attributes:
        known: The different words of the captions that it has.
        different: The different words of the captions.
        share: The share of all words of the captions that it has, between 0 and 1.
    """

    known: int
    different: int
    share: float


def coverage(vocabulary: Vocabulary, captions: Iterable[str]) -> Coverage:
    """How well a vocabulary covers cleaned captions."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(caption.split())
    known = [count for word, count in counts.items() if word in vocabulary]
    return Coverage(len(known), len(counts), sum(known) / max(1, counts.total()))
