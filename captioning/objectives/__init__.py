"""Training objectives: from a decoder and a batch to a loss, one file for each."""

from captioning.objectives.base import Objective
from captioning.objectives.cross_entropy import CrossEntropy

__all__ = ["CrossEntropy", "Objective"]
