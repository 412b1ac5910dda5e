"""Beam search over many images at once."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from captioning.decoding.base import (
    Decoding,
    Hypothesis,
    images_to_keep,
    select,
    token_ids,
    words_of,
)
from captioning.decoding.required_words import continue_banks
from captioning.kernels.ops import log_sum_exp, topk
from captioning.models.decoders.base import Decoder
from captioning.support.errors import CaptioningError
from captioning.support.special_tokens import END, PAD, START


@dataclass(frozen=True, kw_only=True)
class Beam(Decoding):
    """Keeps the ``beam_size`` most probable partial captions of each image at every word.

    A caption that has ended leaves the beam and reduces its size by one, as in the code of Xu et
    al. An image leaves the batch when all of its captions have ended. Captions that have not ended
    at ``max_length`` words are cut off there and ranked with the others, so that every image gets a
    caption. Captions are ranked by log-probability / length ** length_penalty, where the length
    includes ``<end>``.

    With ``required`` words, this is grid beam search: see
    :mod:`captioning.decoding.required_words`.

    Attributes:
        beam_size: how many partial captions are kept for each image; 1 is greedy decoding.
        length_penalty: exponent of the length; 0 ranks by probability, which favours short
            captions, and 1 by the mean log-probability of a word.
        required: words that each caption must have, in any order.
    """

    beam_size: int = 5
    length_penalty: float = 0.8
    required: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beam_size < 1:
            raise CaptioningError(f"decoding.beam_size={self.beam_size}: choose 1 or more")
        given = f"decoding.required={words_of(self.required)}"
        if len(set(self.required)) < len(self.required):
            raise CaptioningError(f"{given}: a word is there twice; name each word once")
        if len(self.required) > self.max_length:
            raise CaptioningError(f"{given}: these do not fit into {self.max_length} words")
        if both := sorted({*self.required} & {*self.forbidden}):
            raise CaptioningError(f"{given}: {both[0]!r} is among decoding.forbidden, too")

    @property
    def width(self) -> int:
        """The number of captions for each image, ``beam_size``."""
        return self.beam_size

    @property
    def groups(self) -> int:
        """The number of groups of partial captions, of which each keeps its own best ones."""
        return 1 + len(self.required)

    @property
    def group_size(self) -> int:
        """The number of partial captions in a group."""
        return self.beam_size

    def check_words(self, decoder: Decoder) -> None:
        super().check_words(decoder)
        token_ids(self.required, decoder, "required")

    def generate(
        self,
        decoder: Decoder,
        grid: Float[Tensor, "images locations channels"],
        *,
        attention: bool,
    ) -> list[list[Hypothesis]]:
        device = grid.device
        memory = decoder.prepare(grid)
        state = decoder.start(memory, self.groups)
        images = torch.arange(len(grid), device=device)  # those with a beam still open
        finished: list[list[Hypothesis]] = [[] for _ in range(len(grid))]
        # How many partial captions each group still keeps: its size without those that have ended.
        room = torch.full((len(grid), self.groups), self.group_size, device=device)
        # Before the first word there is one partial caption, which all beams continue.
        total = torch.zeros((len(grid), self.groups), device=device)
        history = torch.empty((len(grid), self.groups, 0), dtype=torch.long, device=device)
        maps: Tensor | None = None
        last = torch.full((len(grid), self.groups), START, device=device)

        for length in range(1, self.max_length + 1):
            step = decoder.step(last, state, memory)
            total, parent, last = self.choose(step.logits, total, history, room, decoder)
            state = {name: reorder(tensor, parent) for name, tensor in step.state.items()}
            history = torch.cat([reorder(history, parent), last[..., None]], -1)
            if attention and step.attention is not None:
                latest = step.attention[:, :, None]
                maps = reorder(latest if maps is None else torch.cat([maps, latest], 2), parent)

            possible = total > -torch.inf
            ended = possible & ((last == END) | (length == self.max_length))
            where = ended.nonzero()
            rows, beams = where.unbind(1)
            found = zip(where.tolist(), total[rows, beams].tolist(), strict=True)
            for ((row, beam), log_prob), tokens in zip(
                found, history[rows, beams].tolist(), strict=True
            ):
                caption = [token for token in tokens if token != END]
                looked = None if maps is None else maps[row, beam, : len(caption)].clone()
                rank_by = log_prob / length**self.length_penalty
                finished[int(images[row])].append(Hypothesis(caption, log_prob, rank_by, looked))
            room = room - ended.view(len(room), self.groups, -1).sum(-1)
            total = total.masked_fill(ended, -torch.inf)
            last = last.masked_fill(ended, PAD)
            live = (possible & ~ended).any(1)
            if not live.any():
                break
            # Removing images copies the rest of the batch, so that several are removed at a time.
            if live.sum() <= 0.8 * len(live):
                stay = images_to_keep(live)
                images, total, last, history = images[stay], total[stay], last[stay], history[stay]
                state, memory, room = select(state, stay), select(memory, stay), room[stay]
                maps = maps[stay] if maps is not None else None
        return [sorted(found, key=lambda h: -h.score) for found in finished]

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
        """Choose the partial captions that are continued, and the word that continues each.

        Args:
            logits: of the next word of each partial caption; may be overwritten.
            total: the log-probability of each partial caption; -inf where there is none.
            history: the words of each partial caption. They are ordered by group.
            room: how many partial captions each group keeps; of its ``group_size`` places, the
                others are left empty.
            decoder: whose words these are.

        Returns:
            The log-probability of each chosen caption, -inf where there is none; the partial
            caption that it continues; and its last word. They are ordered by group.
        """
        if self.required:
            log_probs = self.log_probs(logits, history, decoder)
            required = token_ids(self.required, decoder, "required")
            words_left = self.max_length - history.shape[-1] - 1
            return continue_banks(
                log_probs, total, history, room, required, self.group_size, words_left
            )
        # Only the best `beam_size` words of each beam can be among the best of all beams.
        normalizer = log_sum_exp(logits)
        best, words = topk(self.mask(logits, history, decoder), self.beam_size)
        candidates = (total[..., None] + (best - normalizer[..., None])).flatten(1)
        total, chosen = candidates.topk(min(self.beam_size, candidates.shape[1]))
        place = torch.arange(total.shape[1], device=total.device)
        total = total.masked_fill(place >= room, -torch.inf)
        return total, chosen // words.shape[-1], words.flatten(1).gather(1, chosen)


def reorder(
    beams: Shaped[Tensor, "images beams *rest"], parent: Int[Tensor, "images chosen"]
) -> Shaped[Tensor, "images chosen *rest"]:
    """Select, for each image, the beams that the chosen candidates continue."""
    images, width = beams.shape[:2]
    first = width * torch.arange(images, device=beams.device)[:, None]
    chosen = beams.flatten(0, 1).index_select(0, (parent + first).flatten())
    return chosen.view(*parent.shape, *beams.shape[2:])
