"""The interface of caption decoders, which training and decoding use.

A decoder processes B images at once, each with K captions: the reference captions of the image in
training, and its beams in decoding. Values that depend on the image alone (the **memory**) are
stored once per image. Values that belong to a caption (the **state**) have leading dimensions
B x K. Both are dictionaries, so that decoding can select images and reorder beams of any decoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from captioning.models.attention.base import Memory
from captioning.support.special_tokens import PAD, UNK

State = dict[str, Tensor]


class Step(NamedTuple):
    """The result of reading one more word of each caption.

    Attributes:
        logits: B x K x V, logits of the next word.
        state: the state after this word.
        attention: B x K x P, the attention weights of this step; None without attention. They sum
            to 1, or to less for decoders with ``partial_attention``.
    """

    logits: Tensor
    state: State
    attention: Tensor | None


@dataclass(frozen=True)
class TeacherForced:
    """The predictions for given captions with teacher forcing.

    The N rows of ``logits`` are all tokens of all captions, in any order. Some rows may have
    padding as their target; they must be ignored.

    Attributes:
        logits: N x V.
        targets: N, the true next tokens.
        positions: N, the index of each target in the flattened B x K x T.
        lengths: B x K, the number of targets of each caption (0 where an image has fewer captions).
        max_length: T, the number of targets of the longest caption.
        coverage: B x K x P, the attention weights of each location, summed over the words of a
            caption; None without attention.
        attention: N x P, the attention weights of each row; None if they are not available.
        location: N, the location that was sampled from the attention weights and used in place of
            their expectation; -1 where the expectation was used; None if the decoder never samples.
    """

    logits: Tensor
    targets: Tensor
    positions: Tensor
    lengths: Tensor
    max_length: int
    coverage: Tensor | None = None
    attention: Tensor | None = None
    location: Tensor | None = None

    def real_rows(self) -> Int[Tensor, " tokens"]:
        """The indices of the rows that are not padding, in the order of the flattened B x K x T."""
        real = (self.targets != PAD).nonzero().flatten()
        return real[self.positions[real].argsort()]

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
        word_dropout: the share of input words that :meth:`drop_words` replaces.
        static: whether the operations depend only on shapes and plain attributes (numbers,
            strings), so that a CUDA graph may replay them. Plain attributes may change between
            steps. ``static`` is not inherited: a subclass must set it again.
        partial_attention: whether the attention weights of a word may sum to less than 1. Their sum
            is then how much the word looked at the image at all, and reports show it.
        words: the tokens as text, by id, special tokens included, which decoding with words of the
            user's needs; empty if they are not known. A captioner sets them.
        needs_objective: the name of the objective without which the decoder does not learn, or the
            dotted path of its class; None: any objective.
    """

    static: ClassVar[bool] = False
    partial_attention: ClassVar[bool] = False
    needs_objective: ClassVar[str | None] = None

    vocabulary_size: int
    words: Sequence[str] = ()
    word_dropout: float = 0.0

    def initialize(self) -> None:
        """Set weights that do not come from random numbers, such as word vectors from a file.

        A new captioner calls it once, when :attr:`words` are known. A captioner that is loaded from
        a checkpoint does not, so that it needs no such file.
        """

    @abstractmethod
    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        """Compute everything that depends on the images alone, once for all their captions."""

    @abstractmethod
    def start(self, memory: Memory, captions: int) -> State:
        """The state before the first word, for ``captions`` captions of each image."""

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

        An image may have no captions, with rows of padding alone. If there is not a single word in
        the batch, nothing is predicted: N is 0, or all targets are padding.

        If the grid is on a GPU, the tokens may stay in the CPU's memory: their lengths are then
        known without synchronising with the GPU, and nothing is computed for padding.
        """

    def drop_words(self, tokens: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """In training, replace a share of the words (not the special tokens) by ``<unk>``."""
        if not self.training or self.word_dropout == 0:
            return tokens
        dropped = torch.rand(tokens.shape, device=tokens.device) < self.word_dropout
        return tokens.masked_fill(dropped & (tokens > UNK), UNK)
