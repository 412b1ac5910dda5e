"""BLEU, METEOR, ROUGE-L and CIDEr by the original COCO caption tools, made robust."""

from captioning.metrics.bootstrap import Paired, Statistics, intervals, paired
from captioning.metrics.caption_scores import CaptionScores
from captioning.metrics.scores import METRICS, CaptionScorer, Scores, score_captions

__all__ = [
    "METRICS",
    "CaptionScorer",
    "CaptionScores",
    "Paired",
    "Scores",
    "Statistics",
    "intervals",
    "paired",
    "score_captions",
]
