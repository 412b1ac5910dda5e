"""The interface of training objectives."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from captioning.models.decoders.base import Decoder
from captioning.support.errors import CaptioningError
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
        teachers: the checkpoints of trained models that :meth:`learn_from` is to be given before
            training; None if it needs none.
        no_teacher: what to say where ``teachers`` is empty.
        teacher_lacks_words: whether the vocabulary of the teacher may be the first words of that of
            the model alone.
    """

    static: ClassVar[bool] = False
    teachers: Sequence[str] | None = None
    no_teacher: ClassVar[str] = ""
    teacher_lacks_words: ClassVar[bool] = False
    _teacher: Sequence[Decoder] = ()  # a sequence, so that it is no submodule

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

    def learn_from(self, teacher: Decoder) -> None:
        """Set the trained decoder of ``teachers``, an ensemble if they are several.

        Its weights stay as they are. It is neither among the parameters of the objective nor in
        checkpoints.
        """
        self._teacher = [teacher.requires_grad_(False)]

    def teacher(self, device: torch.device) -> Decoder:
        """The decoder of :meth:`learn_from`, on a device.

        Raises:
            CaptioningError: there is none.
        """
        if not self._teacher:
            raise CaptioningError(self.no_teacher)
        return self._teacher[0].to(device)

    @abstractmethod
    def forward(self, decoder: Decoder, batch: "Batch") -> dict[str, Tensor]:
        """Compute the ``loss``, and any parts of it that are to be logged.

        The loss of a batch without a single word is 0, and so are its gradients.

        Args:
            decoder: the decoder, to be called with ``batch.grid``.
            batch: images, each with all its captions.
        """


def without_impossible(logits: Float[Tensor, "*rows words"]) -> Float[Tensor, "*rows words"]:
    """Logits in which ``<pad>`` and ``<start>``, which are never the next word, are -infinity."""
    never = torch.tensor([PAD, START], device=logits.device)
    return logits.index_fill(-1, never, -torch.inf)
