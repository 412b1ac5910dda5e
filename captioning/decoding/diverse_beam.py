"""Diverse beam search (Vijayakumar et al. 2016, arXiv 1610.02424): captions that differ."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from captioning.decoding.base import words_of
from captioning.decoding.beam import Beam
from captioning.models.decoders.base import Decoder
from captioning.support.errors import CaptioningError


@dataclass(frozen=True, kw_only=True)
class DiverseBeam(Beam):
    """Divides the beam into groups, and at every word each group avoids the words of those before.

    At word t, group g chooses from the continuations y of its own partial captions those with the
    highest (algorithm 1, with the Hamming diversity of section 5.1)

        log p(y) - diversity * (how many captions of the groups before g have chosen y_t at word t)

    The first group is a beam search of its own. The penalty only decides what is chosen: the
    captions of all groups are ranked together, by their log-probability and length, as in
    :class:`~captioning.decoding.beam.Beam`.

    Attributes:
        beam_size: the number of captions of all groups together.
        beam_groups: the number of groups, which divides ``beam_size``.
        diversity: the strength of the penalty, lambda; 0 makes all groups alike.
    """

    beam_size: int = 6
    beam_groups: int = 3
    diversity: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beam_groups < 1 or self.beam_size % self.beam_groups:
            raise CaptioningError(
                f"decoding.beam_groups={self.beam_groups}: choose a number that divides "
                f"decoding.beam_size={self.beam_size}"
            )
        if self.diversity < 0:
            raise CaptioningError(f"decoding.diversity={self.diversity}: choose 0 or more")
        if self.required:
            raise CaptioningError(
                f"decoding.required={words_of(self.required)}: diverse beam search cannot require "
                "words: choose decoding=beam"
            )

    @property
    def groups(self) -> int:
        return self.beam_groups

    @property
    def group_size(self) -> int:
        return self.beam_size // self.beam_groups

    def choose(
        self,
        logits: Float[Tensor, "images captions words"],
        total: Float[Tensor, "images captions"],
        history: Int[Tensor, "images captions length"],
        room: Int[Tensor, "images groups"],
        decoder: Decoder,
    ) -> tuple[
        Float[Tensor, "images chosen"], Int[Tensor, "images chosen"], Int[Tensor, "images chosen"]
    ]:
        vocabulary = logits.shape[-1]
        candidates = total[..., None] + self.log_probs(logits, history, decoder)
        each = total.shape[1] // self.groups  # partial captions in a group
        counts = torch.zeros((len(total), vocabulary), device=total.device)  # of words at this step
        chosen: list[tuple[Tensor, Tensor, Tensor]] = []
        for group in range(self.groups):
            first = group * each
            own = candidates[:, first : first + each]
            penalized = (own - self.diversity * counts[:, None]).flatten(1)
            place = penalized.topk(min(self.group_size, penalized.shape[1])).indices
            best = own.flatten(1).gather(1, place)
            rank = torch.arange(best.shape[1], device=total.device)
            best = best.masked_fill(rank >= room[:, group, None], -torch.inf)
            last = place % vocabulary
            counts.scatter_add_(1, last, (best > -torch.inf).float())
            chosen.append((best, first + place // vocabulary, last))
        best, parent, last = (torch.cat(parts, 1) for parts in zip(*chosen, strict=True))
        return best, parent, last
