"""CIDEr-D (Vedantam et al. 2015, sec. 5), fast enough to be the reward of a training.

CIDEr-D is what COCO's tools report as "CIDEr", and so does every paper that uses them: plain CIDEr
has neither the clipping of counts nor the penalty of lengths. `captioning.metrics.scores` takes its
"CIDEr" from the original program; here are the same figures from tables that are made once, since
self-critical training (Rennie et al. 2017) asks for thousands of them in a step.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from math import exp, log, sqrt

import numpy as np
from jaxtyping import Float

from captioning.support.errors import CaptioningError

_ORDERS = 4  # n-grams of one to four words
_SIGMA = 6.0  # of the penalty

_Words = Sequence[Hashable]
_Ngram = tuple[Hashable, ...]


class CiderD:
    """Scores hypotheses of images whose references are known beforehand.

    Words may be anything that compares and hashes, such as strings or the numbers of tokens, as
    long as hypotheses and references have the same.

    Args:
        references: by image id, one or more captions, each a sequence of words.
        documents: the references of the images that say how rare an n-gram is, such as the whole
            train split's; by default ``references``.

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
        references: Mapping[Hashable, Sequence[_Words]],
        documents: Mapping[Hashable, Sequence[_Words]] | None = None,
    ) -> None:
        counted = references if documents is None else documents
        frequencies = Counter(
            ngram
            for captions in counted.values()
            for ngram in {ngram for caption in captions for ngram in _ngrams(caption)}
        )
        self._unseen = log(len(counted)) if counted else 0.0
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

    def _prepared(
        self, image: Hashable, captions: Sequence[_Words]
    ) -> tuple[list[int], dict[_Ngram, list[tuple[int, float, float]]]]:
        """The length of each reference, and where each n-gram occurs.

        An occurrence is the reference's place, the n-gram's weight in it, and that weight times
        10 / (orders x references x norm of the weights of its order).
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
