"""The interface of training objectives."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from captioning.models.decoders.base import Decoder
from captioning.support.special_tokens import PAD, START

if TYPE_CHECKING:
    from captioning.data.datamodule import Batch, CaptionDataModule


class Objective(nn.Module, ABC):
    """A module that computes the loss of a decoder on a batch.

    It may have parameters, which are optimised with the decoder's, and buffers, such as a running
    baseline; both are part of checkpoints.

    Attributes:
        static: whether the operations depend only on the shapes of the batch and on plain
            attributes (numbers, strings) of the objective and the decoder, so that a CUDA graph may
            replay them. Plain attributes may change between steps. ``static`` is not inherited: a
            subclass must set it again.
    """

    static: ClassVar[bool] = False

    @property
    def reward_signature(self) -> str | None:
        """The configuration of the reward that it maximises; None if it maximises none.

        It has the form of Hu et al. 2023 (arXiv 2305.12254), without the version of their program.
        """
        return None

    def setup(self, data: "CaptionDataModule") -> None:
        """Read what the objective needs from the data, such as references.

        The captioner calls this once before training.
        """

    @abstractmethod
    def forward(self, decoder: Decoder, batch: "Batch") -> dict[str, Tensor]:
        """Compute the ``loss``, and any parts of it that are to be logged.

        Args:
            decoder: the decoder, to be called with ``batch.grid``.
            batch: images, each with all its captions.
        """


def without_impossible(logits: Float[Tensor, "*rows words"]) -> Float[Tensor, "*rows words"]:
    """Logits in which ``<pad>`` and ``<start>``, which are never the next word, are -infinity."""
    never = torch.tensor([PAD, START], device=logits.device)
    return logits.index_fill(-1, never, -torch.inf)
