"""Statistics of the words of many captions: variety, length and novelty.

They do not tell whether a caption fits its image. A decoder that repeats the same short sentences
may still score well; these figures show it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final

BAD_ENDINGS: Final = frozenset(
    ("with", "in", "on", "of", "a", "at", "to", "for", "an", "this", "his", "her", "that", "the")
)
"""Words with which a sentence does not end unless it is cut short.

The list is `bad_endings` of R. Luo's code for self-critical training (``misc/utils.py`` of
ruotianluo/self-critical.pytorch). Captions of a model that is trained on CIDEr alone may end so.
"""


@dataclass(frozen=True)
class Language:
    """Statistics of a set of captions, for instance of all those of a split.

    `distinct_1`, `distinct_2` and `vocabulary` depend on the number of captions, because new words
    become rarer. Compare them only on equally many captions.

    Attributes:
        distinct_1: Distinct words as a share of all words (J. Li et al., "A Diversity-Promoting
            Objective Function for Neural Conversation Models", NAACL 2016).
        distinct_2: Distinct pairs of neighbouring words as a share of all such pairs. The paper
            divides by the number of words instead, which gives slightly lower values.
        vocabulary: Number of distinct words, `unknown` ones not counted (R. Shetty et al.,
            "Speaking the Same Language", ICCV 2017).
        vocabulary_share: That number as a share of the words in the model's vocabulary; None if
            the vocabulary is not known.
        length: Mean number of words of a caption.
        novel: Share of the captions that are not, word for word, a caption of the train split
            (O. Vinyals et al., "Show and Tell", CVPR 2015; Shetty et al.); None if the captions of
            the train split are not known.
        unknown: Share of the words that stand for out-of-vocabulary words; None if the captions
            have no such word.
        bad_endings: Share of the captions whose last word is one of `BAD_ENDINGS`.
    """

    distinct_1: float
    distinct_2: float
    vocabulary: int
    vocabulary_share: float | None
    length: float
    novel: float | None
    unknown: float | None
    bad_endings: float


def describe_language(
    captions: Sequence[str],
    *,
    train: Collection[str] | None = None,
    vocabulary_size: int | None = None,
    unknown: str | None = None,
) -> Language:
    """Statistics of captions, each a string of words with spaces between them.

    Args:
        captions: Any number of them; some may be empty. Shares of zero words are 0.
        train: The captions of the train split only, cleaned in the same way.
        vocabulary_size: Number of words in the model's vocabulary, without special tokens.
        unknown: The word that stands for out-of-vocabulary words, such as ``<unk>``.
    """
    sentences = [caption.split() for caption in captions]
    words = list(chain.from_iterable(sentences))
    pairs = [pair for sentence in sentences for pair in pairwise(sentence)]
    used = len(set(words) - {unknown})
    known = _known(train)
    return Language(
        distinct_1=_share(len(set(words)), len(words)),
        distinct_2=_share(len(set(pairs)), len(pairs)),
        vocabulary=used,
        vocabulary_share=None if vocabulary_size is None else _share(used, vocabulary_size),
        length=_share(len(words), len(sentences)),
        novel=None
        if known is None
        else _share(sum(tuple(sentence) not in known for sentence in sentences), len(sentences)),
        unknown=None if unknown is None else _share(words.count(unknown), len(words)),
        bad_endings=_share(
            sum(bool(sentence) and sentence[-1] in BAD_ENDINGS for sentence in sentences),
            len(sentences),
        ),
    )


def describe_each(
    captions: Mapping[str, str],
    *,
    train: Collection[str] | None = None,
    unknown: str | None = None,
) -> dict[str, dict[str, int | float]]:
    """The statistics of each caption, by image, whose means are in `Language`.

    These are its ``length``; whether it is ``novel``, if ``train`` is given; and its share of
    ``unknown`` words, if ``unknown`` is given.

    Args:
        captions: By image id.
        train: As for `describe_language`.
        unknown: As for `describe_language`.
    """
    known = _known(train)
    each: dict[str, dict[str, int | float]] = {}
    for image, caption in captions.items():
        words = caption.split()
        each[image] = {"length": len(words)}
        if known is not None:
            each[image]["novel"] = tuple(words) not in known
        if unknown is not None:
            each[image]["unknown"] = _share(words.count(unknown), len(words))
    return each


def _known(train: Collection[str] | None) -> set[tuple[str, ...]] | None:
    return None if train is None else {tuple(caption.split()) for caption in train}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
