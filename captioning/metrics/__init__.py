"""BLEU, METEOR, ROUGE-L and CIDEr by the original COCO caption tools, made robust.

`captioning.metrics.caption_scores` has them as a torchmetrics Metric; it is not imported here, so
that scoring captions need not wait for torch.
"""

from captioning.metrics.bootstrap import Paired, Statistics, compare, intervals, paired
from captioning.metrics.scores import METRICS, CaptionScorer, Scores, score_captions

__all__ = [
    "METRICS",
    "CaptionScorer",
    "Paired",
    "Scores",
    "Statistics",
    "compare",
    "intervals",
    "paired",
    "score_captions",
]
