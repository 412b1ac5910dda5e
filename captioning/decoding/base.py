"""What every way of decoding has in common: its options, its result, its view of the tokens."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from captioning.kernels.words import forbid
from captioning.models.decoders.base import Decoder, Memory, State
from captioning.support.errors import CaptioningError

PAD, START, END, UNKNOWN = 0, 1, 2, 3
"""The special tokens, as in :class:`captioning.data.text.Vocabulary`."""


class Hypothesis(NamedTuple):
    """A caption that the model wrote.

    Attributes:
        tokens: the words, without ``<start>`` and ``<end>``.
        log_prob: natural logarithm of its probability, ``<end>`` included where it ended.
        score: what the search ranked it by.
        attention: words x locations, where each word looked; None without attention or unasked.
    """

    tokens: list[int]
    log_prob: float
    score: float
    attention: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Decoding(ABC):
    """Writes captions with any :class:`~captioning.models.decoders.base.Decoder`.

    Attributes:
        max_length: words of the longest caption; one that has not ended by then stands as it is.
        min_length: words that a caption has at least.
        allow_unknown: whether ``<unk>`` may be written.
        allow_repeats: whether a word may follow itself.
        no_repeat_ngram: no sequence of so many words appears twice in a caption; 0 allows all.
            It ends loops such as "in a blue shirt and a blue shirt and a blue shirt".
    """

    max_length: int = 20
    min_length: int = 1
    allow_unknown: bool = False
    allow_repeats: bool = False
    no_repeat_ngram: int = 2

    def __post_init__(self) -> None:
        if self.max_length < 1 or not 0 <= self.min_length <= self.max_length:
            raise CaptioningError(
                f"decoding.min_length={self.min_length} and max_length={self.max_length} "
                "leave no caption: choose 0 <= min_length <= max_length with max_length >= 1"
            )
        if self.no_repeat_ngram < 0:
            raise CaptioningError(
                f"decoding.no_repeat_ngram={self.no_repeat_ngram}: choose 0 (off) or more"
            )

    @abstractmethod
    def __call__(
        self,
        decoder: Decoder,
        grid: Float[Tensor, "images locations channels"],
        *,
        attention: bool = False,
    ) -> list[list[Hypothesis]]:
        """The hypotheses for each image, best first; with ``attention``, each with its maps."""

    def log_probs(
        self,
        logits: Float[Tensor, "images captions words"],
        history: Int[Tensor, "images captions length"],
    ) -> Float[Tensor, "images captions words"]:
        """The model's log-probabilities of the next word, -inf where the options forbid it.

        What is forbidden takes nothing away from the rest: the others keep the model's own
        probabilities, so that scores of different captions stay comparable. Where the options
        leave no word at all, ``<end>`` is allowed, whatever ``min_length`` says.
        """
        return self.forbid(logits.float().log_softmax(-1), history)

    def forbid(
        self,
        scores: Float[Tensor, "images captions words"],
        history: Int[Tensor, "images captions length"],
    ) -> Float[Tensor, "images captions words"]:
        """Set in place to -inf what the options forbid."""
        length = history.shape[-1]
        always = [PAD, START] if self.allow_unknown else [PAD, START, UNKNOWN]
        banned = torch.tensor(always, device=history.device).expand(*history.shape[:-1], -1)
        if length and not self.allow_repeats:
            banned = torch.cat([banned, history[..., -1:]], -1)
        n = self.no_repeat_ngram
        if n and length >= n:
            grams = history.unfold(-1, n, 1)  # images x captions x (length - n + 1) x n
            recent = history[..., length - n + 1 :]
            seen = (grams[..., :-1] == recent[..., None, :]).all(-1)
            # Where nothing matches, forbid <pad>, which is forbidden anyway.
            banned = torch.cat([banned, grams[..., -1].where(seen, PAD)], -1)
        scores = forbid(scores, banned)
        if length < self.min_length:
            end = scores[..., END].clone()
            scores[..., END] = -torch.inf
            stuck = scores.amax(-1) == -torch.inf
            scores[..., END] = end.where(stuck, -torch.inf)
        return scores


ROUND = 10
"""What the images that are being captioned are a multiple of, so that shapes recur: see
:data:`captioning.models.decoders.base.ROUND`."""


def staying(live: Bool[Tensor, " images"]) -> Bool[Tensor, " images"]:
    """Those images that stay in the batch: all live ones, and some more to make up the number."""
    finished = (~live).nonzero().flatten()[: -int(live.sum()) % ROUND]
    return live.index_fill(0, finished, True)


def select(tensors: Memory | State, index: Tensor) -> dict[str, Tensor]:
    """The given images of a memory or of a state."""
    return {name: tensor[index] for name, tensor in tensors.items()}
