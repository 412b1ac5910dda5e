"""Training objectives, which compute a loss from a decoder and a batch; one file for each."""

from captioning.objectives.base import Objective
from captioning.objectives.cross_entropy import CrossEntropy

__all__ = ["CrossEntropy", "Objective"]
