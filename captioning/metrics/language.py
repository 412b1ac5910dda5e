"""What the words of many captions are like: how varied, how long, how new.

None of this says whether a caption fits its image. A decoder that hedges repeats the same short
sentences and may still score well; these figures show it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise


@dataclass(frozen=True)
class Language:
    """Statistics of a set of captions, for instance of all those of a split.

    `distinct_1`, `distinct_2` and `vocabulary` depend on how many captions there are: the more, the
    rarer is a word not seen before. Compare them on equally many captions alone.

    Attributes:
        distinct_1: Distinct words as a share of all words (J. Li et al., "A Diversity-Promoting
            Objective Function for Neural Conversation Models", NAACL 2016).
        distinct_2: Distinct pairs of neighbouring words as a share of all such pairs. The paper
            divides by the number of words here too, which makes it a little less.
        vocabulary: Number of distinct words, `unknown` ones not counted (R. Shetty et al.,
            "Speaking the Same Language", ICCV 2017).
        vocabulary_share: That number as a share of the words that the model could say; None where
            those are not known.
        length: Mean number of words of a caption.
        novel: Share of the captions that are no train caption, word for word (O. Vinyals et al.,
            "Show and Tell", CVPR 2015; Shetty et al.); None where the train captions
            are not known.
        unknown: Share of the words that stand for one the model has no token of; None where no
            word does.
    """

    distinct_1: float
    distinct_2: float
    vocabulary: int
    vocabulary_share: float | None
    length: float
    novel: float | None
    unknown: float | None


def describe_language(
    captions: Sequence[str],
    *,
    train: Collection[str] | None = None,
    vocabulary_size: int | None = None,
    unknown: str | None = None,
) -> Language:
    """Statistics of captions, each a string of words with spaces between them.

    Args:
        captions: Any number of them; some may be empty. All shares of nothing are 0.
        train: The train captions, cleaned in the same way.
        vocabulary_size: How many words the model can say, special tokens not counted.
        unknown: What captions have for a word without a token, such as ``<unk>``.
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
    )


def describe_each(
    captions: Mapping[str, str],
    *,
    train: Collection[str] | None = None,
    unknown: str | None = None,
) -> dict[str, dict[str, int | float]]:
    """What is defined of a caption by itself, by image: the parts of the means in `Language`.

    These are its ``length``; whether it is ``novel``, and its share of ``unknown`` words, where
    train captions are known, and a word stands for unknown ones.

    Args:
        captions: By image id.
        train: As for `describe_language`.
        unknown: Likewise.
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
