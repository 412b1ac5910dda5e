"""Training objectives, which compute a loss from a decoder and a batch; one file for each."""

from captioning.objectives.base import Objective
from captioning.objectives.cross_entropy import CrossEntropy
from captioning.objectives.hard_attention import HardAttention

__all__ = ["CrossEntropy", "HardAttention", "Objective"]
