"""Image captioning with attention: a PyTorch Lightning research codebase.

The public names are imported when they are first used, so that ``import captioning`` is quick::

    from captioning import CaptionDataModule, Captioner, Beam
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioning.captioner import Captioner
    from captioning.data.datamodule import Batch, CaptionDataModule
    from captioning.decoding import (
        MBR,
        Beam,
        Decoding,
        DiverseBeam,
        Greedy,
        Hypothesis,
        Sample,
    )
    from captioning.kernels.backend import use_backend
    from captioning.metrics import score_captions
    from captioning.metrics.torchmetric import CaptionScores
    from captioning.models.attention.base import Attention
    from captioning.models.decoders.base import Decoder
    from captioning.models.decoders.recurrent import RecurrentDecoder
    from captioning.models.encoders.base import GridEncoder
    from captioning.objectives import CrossEntropy, Objective
    from captioning.support.errors import CaptioningError

__version__ = "0.2.0"

_MODULES = {
    "Attention": "captioning.models.attention.base",
    "Batch": "captioning.data.datamodule",
    "Beam": "captioning.decoding",
    "CaptionDataModule": "captioning.data.datamodule",
    "CaptionScores": "captioning.metrics.torchmetric",
    "Captioner": "captioning.captioner",
    "CaptioningError": "captioning.support.errors",
    "CrossEntropy": "captioning.objectives",
    "Decoder": "captioning.models.decoders.base",
    "Decoding": "captioning.decoding",
    "DiverseBeam": "captioning.decoding",
    "Greedy": "captioning.decoding",
    "GridEncoder": "captioning.models.encoders.base",
    "Hypothesis": "captioning.decoding",
    "MBR": "captioning.decoding",
    "Objective": "captioning.objectives",
    "RecurrentDecoder": "captioning.models.decoders.recurrent",
    "Sample": "captioning.decoding",
    "score_captions": "captioning.metrics",
    "use_backend": "captioning.kernels.backend",
}
"""Where each public name comes from."""

__all__ = [
    "MBR",
    "Attention",
    "Batch",
    "Beam",
    "CaptionDataModule",
    "CaptionScores",
    "Captioner",
    "CaptioningError",
    "CrossEntropy",
    "Decoder",
    "Decoding",
    "DiverseBeam",
    "Greedy",
    "GridEncoder",
    "Hypothesis",
    "Objective",
    "RecurrentDecoder",
    "Sample",
    "score_captions",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'captioning' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
