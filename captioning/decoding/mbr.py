"""Minimum Bayes risk decoding: the caption on which the model's own captions agree best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from captioning.decoding.base import Decoding, Hypothesis
from captioning.decoding.beam import Beam
from captioning.decoding.sample import Sample
from captioning.metrics.utility import Utility
from captioning.models.decoders.base import Decoder
from captioning.support.errors import CaptioningError


@dataclass(frozen=True, kw_only=True)
class MBR(Decoding):
    """Chooses the candidate with the highest expected utility (Kumar and Byrne, NAACL 2004).

        argmax_y  sum_y' w(y') u(y, y')        w = softmax(sharpness * score)

    The candidates y, y' are the model's own captions of the image, from beam search, from sampling,
    or from both; no reference is seen. u(y, y') is a caption metric of y with y' as its reference.
    A candidate that was found several times counts as often. The score of a candidate is its
    log-probability / length ** length_penalty, as in :class:`~captioning.decoding.beam.Beam`, and
    the score of the hypotheses that are returned is their expected utility.

    Attributes:
        beam_size: how many candidates beam search finds; 0: none.
        length_penalty: exponent of the length in the score of a candidate.
        required: words that each caption must have, in any order; only for beam search.
        samples: how many candidates are sampled; 0: none.
        temperature: of the sampling.
        seed: of the sampling; see :class:`~captioning.decoding.sample.Sample`.
        utility: one of :data:`captioning.metrics.utility.UTILITIES`.
        sharpness: how much more weight the candidates with higher scores have; 0: none.
        document_frequencies: ``train``: CIDEr-D weights n-grams by their rarity in the train split;
            ``none``: it weights them alike; ``auto``: ``train`` where the captions of the train
            split are known, as in ``train.py`` and ``eval.py``.
    """

    uses_documents: ClassVar[bool] = True

    beam_size: int = 20
    length_penalty: float = 0.8
    required: tuple[str, ...] = ()
    samples: int = 0
    temperature: float = 0.5
    seed: int | None = 0
    utility: str = "CIDEr"
    sharpness: float = 1.0
    document_frequencies: Literal["auto", "train", "none"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beam_size < 0 or self.samples < 0 or self.width == 0:
            raise CaptioningError(
                f"decoding.beam_size={self.beam_size} and samples={self.samples}: choose 0 or "
                "more, and 1 or more for one of them"
            )
        if self.samples and self.required:
            raise CaptioningError(
                f"decoding.samples={self.samples}: sampling cannot require words: choose "
                "decoding.samples=0 or leave decoding.required out"
            )
        _ = self.searches, self.agreement  # which find other mistakes

    @property
    def width(self) -> int:
        """The number of candidates; fewer are returned if some are equal."""
        return self.beam_size + self.samples

    @cached_property
    def searches(self) -> list[Decoding]:
        """What finds the candidates."""
        rules: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(Decoding)}
        found: list[Decoding] = []
        if self.beam_size:
            found.append(
                Beam(
                    beam_size=self.beam_size,
                    length_penalty=self.length_penalty,
                    required=self.required,
                    **rules,
                )
            )
        if self.samples:
            found.append(
                Sample(captions=self.samples, temperature=self.temperature, seed=self.seed, **rules)
            )
        return found

    @cached_property
    def agreement(self) -> Utility:
        """The utility of candidates for each other."""
        return Utility(self.utility)

    def check_words(self, decoder: Decoder) -> None:
        for search in self.searches:
            search.check_words(decoder)

    def set_documents(self, documents: Mapping[str, Sequence[str]]) -> None:
        if self.document_frequencies != "none":
            self.agreement.set_documents(
                {image: [text.split() for text in of] for image, of in documents.items()}
            )

    def generate(
        self,
        decoder: Decoder,
        grid: Float[Tensor, "images locations channels"],
        *,
        attention: bool,
    ) -> list[list[Hypothesis]]:
        if self.document_frequencies == "train" and not self.agreement.has_documents:
            raise CaptioningError(
                "decoding.document_frequencies=train: the captions of the train split are not "
                "known here: choose auto or none, or call decoding.set_documents(...) first"
            )
        found = [search.generate(decoder, grid, attention=attention) for search in self.searches]
        return [
            self.ranked([each for part in parts for each in part], decoder)
            for parts in zip(*found, strict=True)
        ]

    def ranked(self, candidates: Sequence[Hypothesis], decoder: Decoder) -> list[Hypothesis]:
        """The different candidates of an image, by their expected utility."""
        texts = [[self.word(token, decoder) for token in each.tokens] for each in candidates]
        expected = self.agreement(texts) @ self.weights(candidates)
        best = {
            tuple(each.tokens): each._replace(score=float(value))
            for each, value in zip(candidates, expected, strict=True)
        }
        return sorted(best.values(), key=lambda each: (-each.score, -each.log_prob))

    def weights(self, candidates: Sequence[Hypothesis]) -> Float[np.ndarray, " candidates"]:
        """softmax(sharpness * score)."""
        lengths = [min(len(each.tokens) + 1, self.max_length) for each in candidates]  # with <end>
        log_probs = np.array([each.log_prob for each in candidates])
        scores = self.sharpness * log_probs / np.array(lengths) ** self.length_penalty
        weights = np.exp(scores - scores.max())
        return np.asarray(weights / weights.sum())

    @staticmethod
    def word(token: int, decoder: Decoder) -> str:
        """A token as text; its number if the words of the decoder are not known."""
        return decoder.words[token] if decoder.words else str(token)
