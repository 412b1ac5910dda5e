"""The parts of a captioner, which are chosen by plain data."""

from collections.abc import Mapping
from typing import Any, Final

from captioning.models.decoders.base import Decoder
from captioning.objectives import Objective
from captioning.support.build import import_class
from captioning.support.errors import CaptioningError

Spec = Mapping[str, Any] | type
"""A configuration: ``_target_`` (a dotted path) and its arguments; or a class, for its path."""

NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "encoder": {
        "vgg16": "captioning.models.encoders.vgg16.VGG16",
        "vgg19": "captioning.models.encoders.vgg19.VGG19",
        "resnet50": "captioning.models.encoders.resnet50.ResNet50",
        "efficientnet_lite": "captioning.models.encoders.efficientnet_lite.EfficientNetLite",
        "torchvision": "captioning.models.encoders.torchvision.TorchvisionEncoder",
        "timm": "captioning.models.encoders.timm.TimmEncoder",
    },
    "model": {
        "transformer": "captioning.models.decoders.transformer.TransformerDecoder",
        "adaptive_lstm": "captioning.models.decoders.adaptive_lstm.AdaptiveLSTM",
        "attn_lstm": "captioning.models.decoders.attn_lstm.AttentionLSTM",
        "hard_attn_lstm": "captioning.models.decoders.hard_attn_lstm.HardAttentionLSTM",
        "lstm": "captioning.models.decoders.lstm.LSTM",
    },
    "objective": {
        "cross_entropy": "captioning.objectives.cross_entropy.CrossEntropy",
        "distillation": "captioning.objectives.distillation.Distillation",
        "hard_attention": "captioning.objectives.hard_attention.HardAttention",
        "scheduled_sampling": "captioning.objectives.scheduled_sampling.ScheduledSampling",
        "self_critical": "captioning.objectives.self_critical.SelfCritical",
    },
    "optimizer": {"adamw": "torch.optim.AdamW", "rmsprop": "torch.optim.RMSprop"},
    "scheduler": {
        "constant": "captioning.training.schedules.Constant",
        "warmup_cosine": "captioning.training.schedules.WarmupCosine",
    },
    "validation": {
        "beam": "captioning.decoding.Beam",
        "diverse_beam": "captioning.decoding.DiverseBeam",
        "greedy": "captioning.decoding.Greedy",
        "mbr": "captioning.decoding.MBR",
        "sample": "captioning.decoding.Sample",
    },
}
"""Short names for ``_target_`` paths, by group; they equal the names of the files in ``conf/``."""

OPTIMIZER: Final[Mapping[str, Any]] = {
    "_target_": "torch.optim.AdamW",
    "lr": 1e-3,
    "weight_decay": 0.01,
    "fused": True,
}
"""The optimiser of a captioner that is not given one, as in ``conf/optimizer/adamw.yaml``."""


def check_needed_objective(objective: Objective, decoder: Decoder) -> None:
    """Refuse an objective by which the decoder does not learn.

    Raises:
        CaptioningError: the decoder needs another objective.
    """
    needed = decoder.needs_objective
    if needed is None:
        return
    path = NAMES["objective"].get(needed, needed)
    if not isinstance(objective, import_class(path, Objective, "objective")):
        raise CaptioningError(
            f"{type(decoder).__name__} does not learn by {type(objective).__name__}: "
            f"add objective={needed}."
        )
