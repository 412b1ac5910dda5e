"""How well captions of one image agree with each other, by a caption metric.

Minimum Bayes risk decoding chooses the caption that agrees best with a model's other captions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float

from captioning.metrics.cider import CiderD
from captioning.metrics.metric import Metric
from captioning.metrics.registry import BUILT_IN, STANDARD_SCORES
from captioning.support.errors import CaptioningError

UTILITIES: Final = STANDARD_SCORES
"""The scores that can be utilities: those that need nothing but captions."""

Captions = Sequence[Sequence[str]]


class Utility:
    """Scores each caption of an image with each of them as its only reference.

    Args:
        score: one of `UTILITIES`. CIDEr-D is computed from tables, at half a millisecond for 20
            captions; the others by their original programs, which take much longer.

    Raises:
        CaptioningError: there is no such score.
    """

    def __init__(self, score: str) -> None:
        if score not in UTILITIES:
            raise CaptioningError(f"decoding.utility={score}: choose one of {', '.join(UTILITIES)}")
        self.score = score
        self.has_documents = False
        self._pairwise: Callable[[Captions], np.ndarray]
        if score == "CIDEr":
            self._pairwise = CiderD({}).pairwise  # all n-grams have the same weight
        else:
            self._pairwise = self._by_program

    def set_documents(self, documents: Mapping[str, Captions]) -> None:
        """Weight the n-grams of CIDEr-D by how rare they are, instead of all alike.

        Args:
            documents: the captions of each image of the train split.
        """
        self.has_documents = True
        if self.score == "CIDEr":
            self._pairwise = CiderD({}, documents).pairwise

    def __call__(self, captions: Captions) -> Float[np.ndarray, "captions captions"]:
        """The score of each caption (row) with each of them (column) as its reference."""
        return self._pairwise(captions)

    def _by_program(self, captions: Captions) -> np.ndarray:
        metric: Metric = BUILT_IN[self.score]
        assert metric.compute is not None
        texts = [" ".join(words) for words in captions]
        references = [metric.prepare([text]) for text in texts]
        hypotheses = [text for text in texts for _ in references]
        scores = metric.compute(references * len(texts), hypotheses).per_image[self.score]
        return np.reshape(scores, (len(texts), len(texts)))
