"""BLEU, METEOR, ROUGE-L and CIDEr of captions, equal to COCOEvalCap's to the last digit.

Captions and references are tokenised here; each metric computes its scores in its own module. Three
facts to know before quoting the scores, whatever program computes them:

- CIDEr weights an n-gram by the number of images of the *scored corpus* whose references have it.
  Scores on different sets of images cannot be compared, and on a single image CIDEr is 0.
- The corpus score of BLEU and of METEOR is not the mean of the images' scores.
- Papers print all of them times 100, also CIDEr, whose highest value is 10.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from captioning.metrics.inputs import (
    Hypotheses,
    References,
    as_hypotheses,
    as_references,
    check_order,
)
from captioning.metrics.meteor import METEOR, start_meteor
from captioning.metrics.metric import Computed
from captioning.metrics.registry import METRICS, STANDARD
from captioning.metrics.statistics import Statistics, fingerprint_references
from captioning.metrics.tokenizer import tokenize
from captioning.support.errors import CaptioningError


@dataclass(frozen=True)
class Scores:
    """Scores on the metrics' own scale: 0 to 1, and 0 to 10 for CIDEr.

    Attributes:
        corpus: each score of all images together, by its name, such as ``BLEU-1`` or ``CIDEr``.
        per_image: the same scores of each image, by its id, in the order of the references.
        statistics: the statistics of each image in the same order, for intervals and comparisons;
            empty if the scores were not computed from captions.
    """

    corpus: dict[str, float]
    per_image: dict[str, dict[str, float]]
    statistics: Statistics = field(default_factory=Statistics, compare=False, repr=False)


class CaptionScorer:
    """Scores many sets of captions of one corpus, whose references are prepared once.

    Args:
        references: one or more raw captions for each image id, as ``{image: [caption, ...]}`` or
            as pairs ``(image, caption)``. Captions reach the tokeniser in this order, as in
            COCOEvalCap.
        metrics: any of `METRICS`.

    Raises:
        CaptioningError: an unknown metric, an image without references, or a plain string in place
            of a list of captions.
    """

    def __init__(self, references: References, metrics: Sequence[str] = METRICS) -> None:
        unknown = [metric for metric in metrics if metric not in METRICS]
        if unknown:
            raise CaptioningError(
                f"unknown metric {unknown[0]!r}; choose from {', '.join(METRICS)}"
            )
        captions_of = as_references(references)
        bare = [image for image, captions in captions_of.items() if not captions]
        if bare:
            raise CaptioningError(f"image {bare[0]!r} has no reference captions to score against")
        self.metrics = tuple(metric for metric in METRICS if metric in metrics)
        self._metrics = [metric for metric in STANDARD if metric.name in metrics]
        self.references = captions_of
        raw = [caption for captions in captions_of.values() for caption in captions]
        tokens = iter(tokenize(raw, remember=True))
        self._tokenized = {
            image: [next(tokens) for _ in captions] for image, captions in captions_of.items()
        }
        # Counting n-grams is most of the work of BLEU and CIDEr, and the references' n-grams are
        # the same for every set of hypotheses.
        self._prepared: dict[str, dict[str, Any]] = {
            metric.name: {image: metric.prepare(texts) for image, texts in self._tokenized.items()}
            for metric in self._metrics
        }

    def check_known(self, images: Iterable[str]) -> None:
        """Refuse an image that has no references.

        Raises:
            CaptioningError: naming the image.
        """
        for image in images:
            if image not in self._tokenized:
                raise CaptioningError(f"image {image!r} is captioned but has no references")

    def score(self, hypotheses: Hypotheses, *, partial: bool = False) -> Scores:
        """Score one caption for each image.

        Args:
            hypotheses: a raw caption, which may be empty, for each image id, as
                ``{image: caption}`` or as pairs ``(image, caption)``, in any order.
            partial: score only the images that have a caption, as if they were the whole corpus.
                Otherwise each image of the references must have one.

        Raises:
            CaptioningError: no captions at all, an image without references, something else than
                one string for an image, or, unless ``partial``, an image without a caption.
        """
        hypotheses = as_hypotheses(hypotheses)
        self.check_known(hypotheses)
        images = [image for image in self._tokenized if image in hypotheses]
        missing = len(self._tokenized) - len(images)
        if missing and not partial:
            first = next(image for image in self._tokenized if image not in hypotheses)
            raise CaptioningError(
                f"{missing} of {len(self._tokenized)} images have references but no caption "
                f"(the first is {first!r}): caption them all, or score against fewer references"
            )
        if not images:
            raise CaptioningError("there are no captions to score")
        if METEOR in self._metrics:
            # It takes seconds to load, in the background while the other metrics are computed.
            start_meteor(len(images))
        captions = tokenize([hypotheses[image] for image in images])
        computed = self._computed(images, captions)
        corpus: dict[str, float] = {}
        per_image: dict[str, dict[str, float]] = {image: {} for image in images}
        tables: dict[str, Float[np.ndarray, "images _"]] = {}
        for metric in self._metrics:
            found = computed[metric.name]
            tables[metric.name] = found.table
            corpus |= found.corpus
            for name, scores in found.per_image.items():
                for image, score in zip(images, scores, strict=True):
                    per_image[image][name] = score
        scored_against = fingerprint_references({image: self.references[image] for image in images})
        return Scores(corpus, per_image, Statistics(tuple(images), tables, scored_against))

    def _computed(self, images: list[str], captions: list[str]) -> dict[str, Computed]:
        computed = {}
        # METEOR last, because it is still loading.
        for metric in sorted(self._metrics, key=lambda metric: metric is METEOR):
            assert metric.compute is not None
            prepared = self._prepared[metric.name]
            computed[metric.name] = metric.compute([prepared[image] for image in images], captions)
        return computed


def score_captions(
    hypotheses: Hypotheses, references: References, metrics: Sequence[str] = METRICS
) -> Scores:
    """Score one caption for each image against its references.

    Equal to COCOEvalCap on the same captions in the same order. `CaptionScorer` does the same for
    one corpus many times. Torch is not imported; Java comes with the package.

    Args:
        hypotheses: a raw caption, which may be empty, for each image id of ``references``:
            ``{image: caption}``, or pairs ``(image, caption)``.
        references: one or more raw captions for each image id: ``{image: [caption, ...]}``, or
            pairs ``(image, caption)``, one for each reference.
        metrics: any of `METRICS`.

    Returns:
        The scores of the corpus and of each image, on the metrics' own scale: 0 to 1, and 0 to 10
        for CIDEr.

    Raises:
        CaptioningError: an unknown metric, an image without references or without a caption,
            nothing to score, a plain string in place of a list of references, or swapped
            arguments.

    Example:
        >>> scores = score_captions(
        ...     {"1.jpg": "a dog runs", "2.jpg": "two men sit"},
        ...     {"1.jpg": ["A dog runs.", "The dog is running."], "2.jpg": ["Two men sit there."]},
        ...     metrics=["BLEU"],
        ... )
        >>> round(scores.corpus["BLEU-1"], 3)
        0.846
        >>> hypotheses = [("1.jpg", "a dog runs"), ("2.jpg", "two men sit")]
        >>> pairs = [("1.jpg", "A dog runs."), ("1.jpg", "The dog is running.")]
        >>> pairs += [("2.jpg", "Two men sit there.")]
        >>> score_captions(hypotheses, pairs, metrics=["BLEU"]) == scores
        True
    """
    if isinstance(hypotheses, Iterator):
        hypotheses = list(hypotheses)  # which can be read only once
    if isinstance(references, Iterator):
        references = list(references)
    check_order(hypotheses, references)
    return CaptionScorer(as_references(references), metrics).score(as_hypotheses(hypotheses))
