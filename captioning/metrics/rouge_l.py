"""ROUGE-L: F-measure of the longest common subsequence (Lin 2004), by COCO's tool.

The corpus score is the mean of the images' scores.
"""

from typing import Any

from pycocoevalcap.rouge.rouge import Rouge

from captioning.metrics.metric import Computed, Metric, computed_mean


def _compute(references: list[Any], captions: list[str]) -> Computed:
    corpus, per_image = Rouge().compute_score(
        dict(enumerate(references)), {place: [caption] for place, caption in enumerate(captions)}
    )
    return computed_mean("ROUGE-L", corpus, per_image.tolist())


ROUGE_L = Metric("ROUGE-L", ("ROUGE-L",), compute=_compute)
