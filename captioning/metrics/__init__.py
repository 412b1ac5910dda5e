"""BLEU, METEOR, ROUGE-L and CIDEr by the original COCO caption tools, made robust."""

from captioning.metrics.caption_scores import CaptionScores
from captioning.metrics.scores import METRICS, CaptionScorer, Scores, score_captions

__all__ = ["METRICS", "CaptionScorer", "CaptionScores", "Scores", "score_captions"]
