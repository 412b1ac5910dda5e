"""BLEU-1 to BLEU-4 (Papineni et al. 2002), by COCO's tool.

A corpus score is computed from the sums of the counts of all images and is not the mean of the
images' scores. NLTK's BLEU uses other tokens and gives other figures.
"""

from typing import Any

import numpy as np
from pycocoevalcap.bleu import bleu_scorer

from captioning.metrics.metric import Computed, Metric, Samples, Sums

_NAMES = tuple(f"BLEU-{n}" for n in range(1, 5))


def _compute(references: list[Any], captions: list[str]) -> Computed:
    """BLEU of captions.

    Args:
        references: the n-gram counts of each image's references, from ``bleu_scorer.cook_refs``.
        captions: tokenised, one for each image.
    """
    scorer = bleu_scorer.BleuScorer(n=4)
    scorer.crefs = references
    # COCO's choice of the reference length. By default the scorer chooses differently for a
    # single image.
    corpus, per_image = scorer.retest(captions).compute_score(option="closest")
    return Computed(
        dict(zip(_NAMES, map(float, corpus), strict=True)),
        {name: list(map(float, scores)) for name, scores in zip(_NAMES, per_image, strict=True)},
        np.array([_statistics(image) for image in scorer.ctest], dtype=np.float64),
    )


def _statistics(image: dict[str, Any]) -> list[int]:
    """Ten numbers: matched and all n-grams of each order, the length, the reference length."""
    length: int = image["testlen"]
    # As the scorer chooses: the shorter one of two reference lengths that are equally close.
    closest = min(image["reflen"], key=lambda reference: (abs(reference - length), reference))
    return [*image["correct"], *image["guess"], length, closest]


def _from_sums(sums: Sums) -> Samples:
    """BLEU-1 to BLEU-4 of summed statistics, with pycocoevalcap's guards against 0 / 0."""
    small, tiny = 1e-9, 1e-15
    correct, guessed, lengths, reference_lengths = np.split(sums, [4, 8, 9], axis=1)
    precisions = (correct + tiny) / (guessed + small)
    means = np.cumprod(precisions, axis=1) ** (1 / np.arange(1, 5))
    ratios = (lengths + tiny) / (reference_lengths + small)
    scores = means * np.exp(np.minimum(0, 1 - 1 / ratios))
    return {name: scores[:, place] for place, name in enumerate(_NAMES)}


BLEU = Metric(
    "BLEU",
    _NAMES,
    statistics=10,
    from_sums=_from_sums,
    prepare=bleu_scorer.cook_refs,
    compute=_compute,
)
