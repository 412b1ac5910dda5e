"""BLEU, METEOR, ROUGE-L and CIDEr of captions, equal to COCOEvalCap's to the last digit.

Traps of these metrics, whoever computes them:

- METEOR is version 1.5, the program. NLTK's ``meteor_score`` is another metric with higher figures.
- CIDEr weighs an n-gram by how many images of the *scored corpus* have it in their references, so
  scores on different sets of images cannot be compared, and with a single image all weights, and
  so CIDEr, are 0.
- A corpus score is not the mean of the images' for BLEU and METEOR, which sum counts first.
- Papers print BLEU, METEOR and ROUGE-L times 100, and CIDEr times 100 too although it reaches 10.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from pycocoevalcap.bleu import bleu_scorer
from pycocoevalcap.cider import cider_scorer
from pycocoevalcap.rouge.rouge import Rouge

from captioning.metrics.bootstrap import Statistics, fingerprint_references
from captioning.metrics.meteor import meteor_scores, start_meteor
from captioning.metrics.tokenizer import tokenize
from captioning.support.errors import CaptioningError

METRICS = ("BLEU", "METEOR", "ROUGE-L", "CIDEr")
"""The metrics that can be asked for. BLEU gives four scores, BLEU-1 to BLEU-4."""

# Of a metric: its scores by name, each of the corpus and of every image in order; and its table of
# `Statistics`.
_Results = tuple[dict[str, tuple[float, list[float]]], Float[np.ndarray, "images _"]]


@dataclass(frozen=True)
class Scores:
    """Scores in the tools' own scale: 0 to 1, and 0 to 10 for CIDEr.

    Attributes:
        corpus: each score of all images together, by its name: ``BLEU-1`` to ``BLEU-4``,
            ``METEOR``, ``ROUGE-L``, ``CIDEr``.
        per_image: the same names for each image, by its id, in the order of the references.
        statistics: what each image adds to the corpus scores, in the same order, for intervals and
            comparisons; empty where the scores do not come from captions.
    """

    corpus: dict[str, float]
    per_image: dict[str, dict[str, float]]
    statistics: Statistics = field(default_factory=Statistics, compare=False, repr=False)


class CaptionScorer:
    """Scores captions of one corpus again and again; its references are prepared once.

    Args:
        references: the captions people wrote, raw, one or more for each image id. Their order
            decides the order in which captions reach the tokeniser, as in COCOEvalCap.
        metrics: any of `METRICS`.

    Raises:
        CaptioningError: an unknown metric, or an image without references.
    """

    def __init__(
        self, references: Mapping[str, Sequence[str]], metrics: Sequence[str] = METRICS
    ) -> None:
        unknown = [metric for metric in metrics if metric not in METRICS]
        if unknown:
            raise CaptioningError(
                f"unknown metric {unknown[0]!r}; choose from {', '.join(METRICS)}"
            )
        bare = [image for image, captions in references.items() if not captions]
        if bare:
            raise CaptioningError(f"image {bare[0]!r} has no reference captions to score against")
        self.metrics = tuple(metric for metric in METRICS if metric in metrics)
        self._raw_references = dict(references)
        captions = [caption for captions in references.values() for caption in captions]
        tokens = iter(tokenize(captions, remember=True))
        self._references = {
            image: [next(tokens) for _ in captions] for image, captions in references.items()
        }
        # Counting n-grams is most of the work of these two, and is the same for every hypothesis.
        self._bleu_counts = self._prepared("BLEU", bleu_scorer.cook_refs)
        self._cider_counts = self._prepared("CIDEr", cider_scorer.cook_refs)

    def _prepared(self, metric: str, cook: Any) -> dict[str, Any]:
        if metric not in self.metrics:
            return {}
        return {image: cook(captions) for image, captions in self._references.items()}

    def check_known(self, images: Iterable[str]) -> None:
        """Refuse an image that has no references.

        Raises:
            CaptioningError: naming the image.
        """
        for image in images:
            if image not in self._references:
                raise CaptioningError(f"image {image!r} is captioned but has no references")

    def score(self, hypotheses: Mapping[str, str], *, partial: bool = False) -> Scores:
        """Score one caption for each image.

        Args:
            hypotheses: a raw caption, which may be empty, by image id, in any order.
            partial: score the images that are captioned, as if the corpus were these alone.
                Otherwise each image of the references must be.

        Raises:
            CaptioningError: no captions at all, an image without references, or, unless
                ``partial``, an image without a caption.
        """
        self.check_known(hypotheses)
        images = [image for image in self._references if image in hypotheses]
        missing = len(self._references) - len(images)
        if missing and not partial:
            first = next(image for image in self._references if image not in hypotheses)
            raise CaptioningError(
                f"{missing} of {len(self._references)} images have references but no caption "
                f"(the first is {first!r}): caption them all, or score against fewer references"
            )
        if not images:
            raise CaptioningError("there are no captions to score")
        if "METEOR" in self.metrics:
            start_meteor(
                len(images)
            )  # it loads for seconds: beside the rest of the work, not after it
        captions = tokenize([hypotheses[image] for image in images])
        corpus: dict[str, float] = {}
        per_image: dict[str, dict[str, float]] = {image: {} for image in images}
        tables: dict[str, Float[np.ndarray, "images _"]] = {}
        results = self._results(images, captions)
        for metric in self.metrics:
            scores, tables[metric] = results[metric]
            for name, (score, segments) in scores.items():
                corpus[name] = score
                for image, segment in zip(images, segments, strict=True):
                    per_image[image][name] = segment
        scored_against = fingerprint_references(
            {image: self._raw_references[image] for image in images}
        )
        return Scores(corpus, per_image, Statistics(tuple(images), tables, scored_against))

    def _results(self, images: list[str], captions: list[str]) -> dict[str, _Results]:
        references = [self._references[image] for image in images]
        results: dict[str, _Results] = {}
        if "BLEU" in self.metrics:
            results["BLEU"] = _bleu([self._bleu_counts[image] for image in images], captions)
        if "ROUGE-L" in self.metrics:
            results["ROUGE-L"] = _rouge_l(references, captions)
        if "CIDEr" in self.metrics:
            results["CIDEr"] = _cider([self._cider_counts[image] for image in images], captions)
        if "METEOR" in self.metrics:  # last, to leave it the time to load
            results["METEOR"] = _meteor(references, captions)
        return results


def score_captions(
    hypotheses: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] = METRICS,
) -> Scores:
    """Score one caption for each image against what people wrote of it.

    Equal to COCOEvalCap on the same captions in the same order. `CaptionScorer` does the same for
    one corpus many times.

    Args:
        hypotheses: a raw caption, which may be empty, for each image id of ``references``.
        references: one or more raw captions for each image id.
        metrics: any of `METRICS`.

    Raises:
        CaptioningError: an unknown metric, an image without references or without a caption, or
            nothing to score.

    Example:
        >>> scores = score_captions(
        ...     {"1.jpg": "a dog runs", "2.jpg": "two men sit"},
        ...     {"1.jpg": ["A dog runs.", "The dog is running."], "2.jpg": ["Two men sit there."]},
        ...     metrics=["BLEU"],
        ... )
        >>> round(scores.corpus["BLEU-1"], 3)
        0.846
    """
    return CaptionScorer(references, metrics).score(hypotheses)


def _bleu(counts: list[Any], captions: list[str]) -> _Results:
    scorer = bleu_scorer.BleuScorer(n=4)
    scorer.crefs = counts
    # COCO's choice of the reference length; left to itself the scorer takes another for one image.
    corpus, segments = scorer.retest(captions).compute_score(option="closest")
    scores = {
        f"BLEU-{n}": (float(score), list(map(float, images)))
        for n, (score, images) in enumerate(zip(corpus, segments, strict=True), start=1)
    }
    return scores, np.array([_bleu_statistics(image) for image in scorer.ctest], dtype=np.float64)


def _bleu_statistics(image: dict[str, Any]) -> list[int]:
    length: int = image["testlen"]
    # As the scorer chooses: the shorter of two that are equally close.
    closest = min(image["reflen"], key=lambda reference: (abs(reference - length), reference))
    return [*image["correct"], *image["guess"], length, closest]


def _meteor(references: list[list[str]], captions: list[str]) -> _Results:
    corpus, segments, statistics = meteor_scores(captions, references)
    return {"METEOR": (corpus, segments)}, np.array(statistics)


def _rouge_l(references: list[list[str]], captions: list[str]) -> _Results:
    corpus, segments = Rouge().compute_score(
        dict(enumerate(references)), {i: [caption] for i, caption in enumerate(captions)}
    )
    return {"ROUGE-L": (float(corpus), segments.tolist())}, segments[:, None]


def _cider(counts: list[Any], captions: list[str]) -> _Results:
    if any(ngrams for image in counts for ngrams in image):
        scorer = cider_scorer.CiderScorer()
        scorer.crefs = counts
        scorer.ctest = [cider_scorer.cook_test(caption) for caption in captions]
        corpus, segments = scorer.compute_score()
    else:
        # No reference has a word, where the scorer fails: nothing can agree with nothing.
        corpus, segments = 0.0, np.zeros(len(captions))
    return {"CIDEr": (float(corpus), segments.tolist())}, segments[:, None]
