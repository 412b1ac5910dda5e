"""What every caption decoder offers: the contract that training and decoding are written against.

A decoder describes B images at once, each with K captions side by side: the K captions of an image
in training, the K beams of it in decoding. What is computed from an image alone (its **memory**) is
kept once for all of them, indexed by image; what belongs to a caption (its **state**) has leading
dimensions B x K. Both are dictionaries, so that decoding can select images and reorder beams
without knowing what they hold.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from captioning.models.attention.base import Memory
from captioning.support.special_tokens import PAD

State = dict[str, Tensor]


class Step(NamedTuple):
    """One more word of each caption.

    Attributes:
        logits: B x K x V, scores of the next word before the softmax.
        state: the state after this word.
        attention: B x K x P, the attention weights of this step; None without attention.
    """

    logits: Tensor
    state: State
    attention: Tensor | None


@dataclass(frozen=True)
class TeacherForced:
    """The predictions for given captions, each word given the true words before it.

    The N rows of ``logits`` are all tokens of all captions, in any order. Rows whose target is
    padding may be among them; they do not count.

    Attributes:
        logits: N x V.
        targets: N, the true next tokens.
        positions: N, where each target stands in the flattened B x K x T.
        lengths: B x K, how many targets each caption has (0 where an image has fewer captions).
        max_length: T, targets of the longest caption.
        coverage: B x K x P, the attention weights of each location, summed over the words of a
            caption; None without attention.
    """

    logits: Tensor
    targets: Tensor
    positions: Tensor
    lengths: Tensor
    max_length: int
    coverage: Tensor | None = None

    def token_log_probs(self) -> Float[Tensor, "images captions length"]:
        """The log-probability of each target; 0 after the end of a caption.

        The sum over the last dimension is the log-probability of a caption.
        """
        logits = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        chosen = logits.log_softmax(-1).gather(-1, self.targets[:, None]).squeeze(-1)
        flat = chosen.new_zeros(self.lengths.numel() * self.max_length)
        flat = flat.index_add(0, self.positions, chosen * (self.targets != PAD))
        return flat.view(*self.lengths.shape, self.max_length)


class Decoder(nn.Module, ABC):
    """A model of captions given the grid of an image. Token 0 is padding everywhere.

    Attributes:
        vocabulary_size: V, special tokens included.
        static: whether what the class computes depends on nothing but shapes and plain attributes
            (numbers, strings), which may change between steps, so that a CUDA graph may replay it.
            Not inherited: a subclass that adds nothing else says so again.
    """

    static: ClassVar[bool] = False

    vocabulary_size: int

    @abstractmethod
    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        """All that is computed from the images alone, once for all their captions."""

    @abstractmethod
    def start(self, memory: Memory, captions: int) -> State:
        """The state before the first word, of ``captions`` captions an image."""

    @abstractmethod
    def step(self, tokens: Int[Tensor, "images captions"], state: State, memory: Memory) -> Step:
        """Read one token of each caption and predict the next."""

    @abstractmethod
    def forward(
        self,
        grid: Float[Tensor, "images locations channels"],
        tokens: Int[Tensor, "images captions length"],
    ) -> TeacherForced:
        """Predict every next token of the given captions (``<start>`` ... ``<end>``, 0-padded).

        Tokens may stay in the CPU's memory where the grid is on a GPU: their lengths are then known
        without waiting for the GPU, and nothing is computed for padding.
        """
