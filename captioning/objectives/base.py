"""What every training objective offers."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from captioning.models.decoders.base import Decoder

if TYPE_CHECKING:
    from captioning.data.datamodule import Batch, CaptionDataModule


class Objective(nn.Module, ABC):
    """A module that computes the loss of a decoder on a batch.

    It may have parameters, which are optimised with the decoder's, and buffers, such as a running
    baseline; both are part of checkpoints.

    Attributes:
        static: whether the operations depend on nothing but the shapes of the batch and on plain
            attributes (numbers, strings) of the objective and the decoder, so that a CUDA graph may
            replay them. Plain attributes may change between steps. Not inherited: a subclass says
            so again.
    """

    static: ClassVar[bool] = False

    def setup(self, data: "CaptionDataModule") -> None:
        """Take what is needed of the data, such as references; called once before training."""

    @abstractmethod
    def forward(self, decoder: Decoder, batch: "Batch") -> dict[str, Tensor]:
        """The ``loss``, and any parts of it to be logged.

        Args:
            decoder: called with ``batch.grid``.
            batch: images, each with all its captions.
        """
