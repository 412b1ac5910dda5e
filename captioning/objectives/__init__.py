"""Training objectives, which compute a loss from a decoder and a batch; one file for each."""

from captioning.objectives.base import Objective
from captioning.objectives.cross_entropy import CrossEntropy
from captioning.objectives.distillation import Distillation
from captioning.objectives.hard_attention import HardAttention
from captioning.objectives.scheduled_sampling import ScheduledSampling
from captioning.objectives.self_critical import SelfCritical

__all__ = [
    "CrossEntropy",
    "Distillation",
    "HardAttention",
    "Objective",
    "ScheduledSampling",
    "SelfCritical",
]
