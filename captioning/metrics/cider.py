"""CIDEr-D (Vedantam et al. 2015, sec. 5): the metric by COCO's tool, and a fast training reward.

CIDEr-D is what COCO's tools and the papers that use them report as "CIDEr". Plain CIDEr neither
clips counts nor penalises differences in length.

`CIDER` computes the metric with the original program. `CiderD` computes the same figures from
tables that are made once, because self-critical training (Rennie et al. 2017) needs thousands of
them in a step.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from math import exp, log, sqrt
from typing import Any

import numpy as np
from jaxtyping import Float
from pycocoevalcap.cider import cider_scorer

from captioning.metrics.metric import Computed, Metric, computed_mean
from captioning.support.errors import CaptioningError

_ORDERS = 4  # n-grams of one to four words
_SIGMA = 6.0  # of the Gaussian penalty on differences in length

_Words = Sequence[Hashable]
_Ngram = tuple[Hashable, ...]


class CiderD:
    """Scores hypotheses of images whose references are known beforehand.

    Words may be anything hashable, such as strings or token ids, as long as hypotheses and
    references use the same.

    Args:
        references: by image id, one or more captions, each a sequence of words.
        documents: the references from which document frequencies are counted, such as those of the
            whole train split. Default: ``references``. If there are none, all n-grams have the
            same weight.

    Raises:
        CaptioningError: an image has no references.

    Example:
        >>> reward = CiderD({
        ...     "1.jpg": [["a", "dog", "runs", "fast"], ["the", "dog", "runs"]],
        ...     "2.jpg": [["two", "men", "sit"]],
        ... })
        >>> reward(["1.jpg", "1.jpg"], [["a", "dog", "runs", "fast"], ["two", "dogs"]]).round(3)
        array([6.215, 0.   ])
    """

    def __init__(
        self,
        references: Mapping[Any, Sequence[_Words]],
        documents: Mapping[Any, Sequence[_Words]] | None = None,
    ) -> None:
        counted = references if documents is None else documents
        frequencies = Counter(
            ngram
            for captions in counted.values()
            for ngram in {ngram for caption in captions for ngram in _ngrams(caption)}
        )
        self._unseen = log(len(counted)) if counted else 1.0
        self._rarity = {ngram: self._unseen - log(n) for ngram, n in frequencies.items()}
        self._images = {image: self._prepared(image, texts) for image, texts in references.items()}

    def __call__(
        self, images: Sequence[Hashable], hypotheses: Sequence[_Words]
    ) -> Float[np.ndarray, " hypotheses"]:
        """The score of each hypothesis, from 0 to 10.

        Args:
            images: the image of each, as often as it has hypotheses.
            hypotheses: their words, without tokens for start, end and padding.

        Raises:
            CaptioningError: an image has no references.
            ValueError: more or fewer images than hypotheses.
        """
        scores = np.empty(len(hypotheses))
        for place, (image, words) in enumerate(zip(images, hypotheses, strict=True)):
            if image not in self._images:
                raise CaptioningError(f"image {image!r} is captioned but has no references")
            scores[place] = self._score(words, *self._images[image])
        return scores

    def pairwise(self, captions: Sequence[_Words]) -> Float[np.ndarray, "captions captions"]:
        """The score of each caption (row) with each of them (column) as its only reference."""
        counted = [_ngrams(words) for words in captions]
        place: dict[_Ngram, int] = {}
        for ngrams in counted:
            for ngram in ngrams:
                place.setdefault(ngram, len(place))
        counts = np.zeros((len(captions), len(place)))
        for row, ngrams in zip(counts, counted, strict=True):
            row[[place[ngram] for ngram in ngrams]] = list(ngrams.values())
        weights = counts * [self._rarity.get(ngram, self._unseen) for ngram in place]
        order = np.array([len(ngram) for ngram in place])
        scores = np.zeros((len(captions), len(captions)))
        for n in range(1, _ORDERS + 1):
            own = weights[:, order == n]
            norms = np.sqrt((own**2).sum(1))
            products = np.einsum("hrn,rn->hr", np.minimum(own[:, None], own), own)
            both = norms[:, None] * norms
            scores += np.divide(products, both, out=np.zeros_like(both), where=both > 0)
        lengths = np.array([len(words) for words in captions], dtype=float)
        differences = lengths[:, None] - lengths
        return np.asarray(10 / _ORDERS * scores * np.exp(-(differences**2) / (2 * _SIGMA**2)))

    def _prepared(
        self, image: Hashable, captions: Sequence[_Words]
    ) -> tuple[list[int], dict[_Ngram, list[tuple[int, float, float]]]]:
        """The length of each reference, and the occurrences of each n-gram in the references.

        An occurrence is the index of the reference, the weight of the n-gram in it, and that weight
        times 10 / (orders x references x norm of the weights of its order).
        """
        if not captions:
            raise CaptioningError(f"image {image!r} has no reference captions to score against")
        lengths = []
        occurrences = defaultdict(list)
        for place, words in enumerate(captions):
            weights, norms = self._weighted(words)
            factors = [10 / (_ORDERS * len(captions) * norm) if norm else 0.0 for norm in norms]
            lengths.append(len(words))
            for ngram, weight in weights.items():
                occurrences[ngram].append((place, weight, weight * factors[len(ngram) - 1]))
        return lengths, dict(occurrences)

    def _score(
        self,
        words: _Words,
        lengths: list[int],
        occurrences: dict[_Ngram, list[tuple[int, float, float]]],
    ) -> float:
        weights, norms = self._weighted(words)
        penalties = [exp(-((len(words) - length) ** 2) / (2 * _SIGMA**2)) for length in lengths]
        score = 0.0
        for ngram, weight in weights.items():
            norm = norms[len(ngram) - 1]
            if norm and ngram in occurrences:
                for place, counted, factor in occurrences[ngram]:
                    score += penalties[place] * min(weight, counted) * factor / norm
        return score

    def _weighted(self, words: _Words) -> tuple[dict[_Ngram, float], list[float]]:
        """The weight of each n-gram of a caption, and the norm of the weights of each order."""
        rarity, unseen = self._rarity, self._unseen
        squares = [0.0] * _ORDERS
        weights = {}
        for ngram, count in _ngrams(words).items():
            weights[ngram] = weight = count * rarity.get(ngram, unseen)
            squares[len(ngram) - 1] += weight * weight
        return weights, [sqrt(square) for square in squares]


def _ngrams(words: _Words) -> Counter[_Ngram]:
    """How often each n-gram occurs, of all orders."""
    shifted = [words[start:] for start in range(_ORDERS)]
    return Counter(
        chain.from_iterable(zip(*shifted[:n], strict=False) for n in range(1, _ORDERS + 1))
    )


def _compute(references: list[Any], captions: list[str]) -> Computed:
    """CIDEr by the original scorer.

    Args:
        references: the n-gram counts of each image's references, from ``cider_scorer.cook_refs``.
        captions: tokenised, one for each image.
    """
    if any(ngrams for image in references for ngrams in image):
        scorer = cider_scorer.CiderScorer()
        scorer.crefs = references
        scorer.ctest = [cider_scorer.cook_test(caption) for caption in captions]
        corpus, per_image = scorer.compute_score()
    else:
        # The original scorer fails if no reference has a word. Nothing matches then.
        corpus, per_image = 0.0, np.zeros(len(captions))
    return computed_mean("CIDEr", corpus, per_image.tolist())


CIDER = Metric("CIDEr", ("CIDEr",), highest=10.0, prepare=cider_scorer.cook_refs, compute=_compute)
