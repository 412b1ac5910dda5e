"""BLEU, METEOR, ROUGE-L and CIDEr by the original COCO caption tools, and statistics on them.

Names are imported on first use. Only `CaptionScores`, the torchmetrics metric, imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioning.metrics.bootstrap import Paired, compare, intervals, paired
    from captioning.metrics.caption_scorer import CaptionScorer, Scores, score_captions
    from captioning.metrics.registry import METRICS
    from captioning.metrics.statistics import Statistics
    from captioning.metrics.torchmetric import CaptionScores

__all__ = [
    "METRICS",
    "CaptionScorer",
    "CaptionScores",
    "Paired",
    "Scores",
    "Statistics",
    "compare",
    "intervals",
    "paired",
    "score_captions",
]

_MODULES = {
    "METRICS": "registry",
    "CaptionScorer": "caption_scorer",
    "CaptionScores": "torchmetric",
    "Paired": "bootstrap",
    "Scores": "caption_scorer",
    "Statistics": "statistics",
    "compare": "bootstrap",
    "intervals": "bootstrap",
    "paired": "bootstrap",
    "score_captions": "caption_scorer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
