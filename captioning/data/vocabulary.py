"""The vocabulary: words and their ids, made from the training captions."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from captioning.support.errors import CaptioningError, shortened
from captioning.support.files import atomic_write_json
from captioning.support.reading import load_json
from captioning.support.special_tokens import END, SPECIAL_WORDS, START, UNK

log = logging.getLogger(__name__)

_MOST_WORDS = 0.9
"""A vocabulary with a smaller share of the words of the training captions is warned of."""


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
    counts = _count_words(captions)
    words = _frequent(counts, min_count, max_size)
    if not words:
        raise CaptioningError(
            f"None of the {len(counts)} words is seen {min_count} times; lower data.min_count."
        )
    return Vocabulary(words)


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

    Raises:
        CaptioningError: a limit below 1.
    """
    counts = _count_words(captions)
    new = {word: count for word, count in counts.items() if word not in vocabulary}
    return Vocabulary([*vocabulary.words, *_frequent(new, min_count, max_size)])


def _count_words(captions: Iterable[str | Sequence[str]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(caption.split() if isinstance(caption, str) else caption)
    return counts


def _frequent(counts: Mapping[str, int], min_count: int, max_size: int | None) -> list[str]:
    """The words that get ids of their own, in the order of :func:`build_vocabulary`."""
    for name, limit in (("min_count", min_count), ("max_size", max_size)):
        if limit is not None and limit < 1:
            raise CaptioningError(f"The vocabulary's {name} should be at least 1, not {limit}.")
    words = [
        word for word, count in counts.items() if count >= min_count and word not in SPECIAL_WORDS
    ]
    return sorted(words, key=lambda word: (-counts[word], word))[:max_size]


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
    counts = _count_words(captions)
    known = [count for word, count in counts.items() if word in vocabulary]
    return Coverage(len(known), len(counts), sum(known) / max(1, counts.total()))


def choose_vocabulary(
    captions: Sequence[str],
    given: Vocabulary | None,
    *,
    add_words: bool,
    min_count: int,
    max_size: int | None,
) -> Vocabulary:
    """The vocabulary of a run, with a warning if it lacks many words of the captions.

    Args:
        captions: The cleaned captions of the training split.
        given: The vocabulary of a trained model; None: one is built.
        add_words: Append the words of the captions that the given one lacks.
        min_count: How often a word must occur to get an id.
        max_size: The most words, or new words, to keep.

    Raises:
        CaptioningError: as for :func:`build_vocabulary`.
    """
    if given is None:
        vocabulary = build_vocabulary(captions, min_count, max_size)
    elif not add_words:
        return given
    else:
        vocabulary = extend_vocabulary(given, captions, min_count, max_size)
        new = vocabulary.words[len(given.words) :]
        log.info(
            "Data: words added to the %d of the vocabulary: %d%s",
            *(len(given.words), len(new)),
            f" ({shortened(', '.join(new), 200)})" if new else "",
        )
    known, different, share = coverage(vocabulary, captions)
    if share < _MOST_WORDS:
        log.warning(
            "Data: data.min_count=%d leaves %d of the %d different words of the training "
            "captions; %.0f %% of their words become <unk>, and data.min_count=1 keeps all.",
            *(min_count, known, different, 100 * (1 - share)),
        )
    return vocabulary
