"""The base class of all ways of decoding: common options, the result, and evaluation mode."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from captioning.kernels.ops import mask_tokens
from captioning.models.decoders.base import Decoder
from captioning.support.errors import CaptioningError
from captioning.support.nearest import did_you_mean
from captioning.support.special_tokens import END, PAD, SPECIAL_WORDS, START, UNK


class Hypothesis(NamedTuple):
    """A caption that the model wrote.

    Attributes:
        tokens: the words, without ``<start>`` and ``<end>``.
        log_prob: natural logarithm of its probability, including that of ``<end>`` unless it was
            cut off at ``max_length``.
        score: the value by which hypotheses are ranked.
        attention: words x locations, the attention weights at each word; None if the decoder has no
            attention or the weights were not requested.
    """

    tokens: list[int]
    log_prob: float
    score: float
    attention: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Decoding(ABC):
    """Writes captions with any :class:`~captioning.models.decoders.base.Decoder`.

    Attributes:
        max_length: number of words after which a caption is cut off.
        min_length: smallest number of words of a caption.
        allow_unknown: whether ``<unk>`` may be written.
        allow_repeats: whether a word may follow itself.
        no_repeat_ngram: no n-gram of this length may appear twice in a caption; 0 allows all. This
            prevents loops such as "in a blue shirt and a blue shirt and a blue shirt".
        no_repeat_across: words on both sides of which there may not be the same word. ``["and"]``
            prevents "white and white".
        forbidden: words that may not be written.
    """

    max_length: int = 20
    min_length: int = 1
    allow_unknown: bool = False
    allow_repeats: bool = False
    no_repeat_ngram: int = 2
    no_repeat_across: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()

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

    uses_documents: ClassVar[bool] = False
    """Whether :meth:`set_documents` makes a difference."""

    @property
    def width(self) -> int | None:
        """The largest number of captions that an image gets; None if it is not known."""
        return None

    def check_words(self, decoder: Decoder) -> None:
        """Check that the decoder can write the words of the options.

        Raises:
            CaptioningError: a word is not in its vocabulary.
        """
        token_ids(self.forbidden, decoder, "forbidden")
        token_ids(self.no_repeat_across, decoder, "no_repeat_across")

    def set_documents(self, documents: Mapping[str, Sequence[str]]) -> None:
        """Take the captions of the train split, for a decoding that learns from them what is rare.

        Args:
            documents: the cleaned captions of each image.
        """
        del documents

    def __call__(
        self,
        decoder: Decoder,
        grid: Float[Tensor, "images locations channels"],
        *,
        attention: bool = False,
    ) -> list[list[Hypothesis]]:
        """The hypotheses for each image, best first.

        The decoder is put into evaluation mode, and its modules' modes are restored afterwards.

        Args:
            decoder: any decoder.
            grid: the grids of the images, on the decoder's device.
            attention: whether each hypothesis gets its attention weights.
        """
        self.check_words(decoder)
        with generating(decoder):
            return self.generate(decoder, grid, attention=attention)

    @abstractmethod
    def generate(
        self,
        decoder: Decoder,
        grid: Float[Tensor, "images locations channels"],
        *,
        attention: bool,
    ) -> list[list[Hypothesis]]:
        """Compute what calling the object returns; called without gradients, in evaluation mode."""

    def log_probs(
        self,
        logits: Float[Tensor, "images captions words"],
        history: Int[Tensor, "images captions length"],
        decoder: Decoder,
    ) -> Float[Tensor, "images captions words"]:
        """The model's log-probabilities of the next word, -inf where the options forbid it.

        The words that remain keep the model's own probabilities, so that the scores of different
        captions stay comparable. Where the options leave no word at all, ``<end>`` is allowed,
        whatever ``min_length`` says.
        """
        return self.mask(logits.float().log_softmax(-1), history, decoder)

    def mask(
        self,
        scores: Float[Tensor, "images captions words"],
        history: Int[Tensor, "images captions length"],
        decoder: Decoder,
    ) -> Float[Tensor, "images captions words"]:
        """Set the scores of words that the options forbid to -inf, in place."""
        length = history.shape[-1]
        always = [PAD, START] if self.allow_unknown else [PAD, START, UNK]
        always += token_ids(self.forbidden, decoder, "forbidden")
        banned = torch.tensor(always, device=history.device).expand(*history.shape[:-1], -1)
        if length and not self.allow_repeats:
            banned = torch.cat([banned, history[..., -1:]], -1)
        n = self.no_repeat_ngram
        if n and length >= n:
            grams = history.unfold(-1, n, 1)  # images x captions x (length - n + 1) x n
            recent = history[..., length - n + 1 :]
            seen = (grams[..., :-1] == recent[..., None, :]).all(-1)
            # Where nothing matches, <pad> is banned, which it is anyway.
            banned = torch.cat([banned, grams[..., -1].where(seen, PAD)], -1)
        if self.no_repeat_across and length > 1:
            across = token_ids(self.no_repeat_across, decoder, "no_repeat_across")
            between = torch.isin(history[..., -1:], torch.tensor(across, device=history.device))
            banned = torch.cat([banned, history[..., -2:-1].where(between, PAD)], -1)
        scores = mask_tokens(scores, banned)
        if length < self.min_length:
            end = scores[..., END].clone()
            scores[..., END] = -torch.inf
            stuck = scores.amax(-1) == -torch.inf
            scores[..., END] = end.where(stuck, -torch.inf)
        return scores


def token_ids(words: Sequence[str], decoder: Decoder, option: str) -> list[int]:
    """The ids of the words of an option.

    Args:
        words: without repetitions.
        decoder: whose vocabulary they should belong to.
        option: the name of the option, for messages.

    Raises:
        CaptioningError: a word is not in the vocabulary, or the decoder does not know its words.
    """
    if not words:
        return []
    if not decoder.words:
        raise CaptioningError(
            f"decoding.{option}={words_of(words)}: the words of the decoder are not known: set "
            "decoder.words, as a Captioner does."
        )
    ids = {word: place for place, word in enumerate(decoder.words) if word not in SPECIAL_WORDS}
    for word in words:
        if word not in ids:
            hint = did_you_mean(word, ids) or "Choose words that the training captions have."
            raise CaptioningError(
                f"decoding.{option}={words_of(words)}: {word!r} is not in the model's vocabulary "
                f"of {len(ids):,} words; {hint[0].lower() + hint[1:]}"
            )
    return [ids[word] for word in words]


def words_of(words: Sequence[str]) -> str:
    """A list of words as it is written on the command line."""
    return f"[{','.join(words)}]"


IMAGE_MULTIPLE = 10
"""The number of images in the batch is rounded up to a multiple of this, so that the shapes of
matrix products recur; see :data:`captioning.models.decoders.packing.ROW_MULTIPLE`."""


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode within the block; their modes are restored afterwards."""
    before = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


@contextmanager
def generating(decoder: Decoder) -> Iterator[None]:
    """Evaluation mode without gradients within the block.

    This is not inference mode, in which autocast would cast the weights again at every word.
    """
    with evaluation_mode(decoder), torch.inference_mode(False), torch.no_grad():
        yield


def images_to_keep(live: Bool[Tensor, " images"]) -> Bool[Tensor, " images"]:
    """The images that stay in the batch: all live ones, and finished ones up to the multiple."""
    finished = (~live).nonzero().flatten()[: -int(live.sum()) % IMAGE_MULTIPLE]
    return live.index_fill(0, finished, True)


def select(memory_or_state: dict[str, Any], images: Tensor) -> dict[str, Any]:
    """The given images of a memory or of a state."""
    return {name: value[images] for name, value in memory_or_state.items()}
