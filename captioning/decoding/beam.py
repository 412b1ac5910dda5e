"""Beam search over many images at once."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from captioning.decoding.base import Decoding, Hypothesis, images_to_keep, select
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

    Attributes:
        beam_size: how many partial captions are kept for each image; 1 is greedy decoding.
        length_penalty: exponent of the length; 0 ranks by probability, which favours short
            captions, and 1 by the mean log-probability of a word.
    """

    beam_size: int = 5
    length_penalty: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beam_size < 1:
            raise CaptioningError(f"decoding.beam_size={self.beam_size}: choose 1 or more")

    def generate(
        self,
        decoder: Decoder,
        grid: Float[Tensor, "images locations channels"],
        *,
        attention: bool,
    ) -> list[list[Hypothesis]]:
        width, device = self.beam_size, grid.device
        memory = decoder.prepare(grid)
        state = decoder.start(memory, 1)
        images = torch.arange(len(grid), device=device)  # those with a beam still open
        finished: list[list[Hypothesis]] = [[] for _ in range(len(grid))]
        # Before the first word there is one partial caption, which all beams continue.
        total = torch.zeros((len(grid), 1), device=device)
        history = torch.empty((len(grid), 1, 0), dtype=torch.long, device=device)
        maps: Tensor | None = None
        last = torch.full((len(grid), 1), START, device=device)

        for length in range(1, self.max_length + 1):
            step = decoder.step(last, state, memory)
            # Only the best `width` words of each beam can be among the best of all beams.
            normalizer = log_sum_exp(step.logits)
            best, words = topk(self.mask(step.logits, history), width)
            candidates = (total[..., None] + (best - normalizer[..., None])).flatten(1)
            total, chosen = candidates.topk(min(width, candidates.shape[1]))
            room = torch.tensor([width - len(finished[i]) for i in images.tolist()], device=device)
            place = torch.arange(total.shape[1], device=device)
            total = total.masked_fill(place >= room[:, None], -torch.inf)
            parent, last = chosen // words.shape[-1], words.flatten(1).gather(1, chosen)
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
            total = total.masked_fill(ended, -torch.inf)
            last = last.masked_fill(ended, PAD)
            live = (possible & ~ended).any(1)
            if not live.any():
                break
            # Removing images copies the rest of the batch, so that several are removed at a time.
            if live.sum() <= 0.8 * len(live):
                stay = images_to_keep(live)
                images, total, last, history = images[stay], total[stay], last[stay], history[stay]
                state, memory = select(state, stay), select(memory, stay)
                maps = maps[stay] if maps is not None else None
        return [sorted(found, key=lambda h: -h.score) for found in finished]


def reorder(
    beams: Shaped[Tensor, "images beams *rest"], parent: Int[Tensor, "images chosen"]
) -> Shaped[Tensor, "images chosen *rest"]:
    """Select, for each image, the beams that the chosen candidates continue."""
    images, width = beams.shape[:2]
    first = width * torch.arange(images, device=beams.device)[:, None]
    chosen = beams.flatten(0, 1).index_select(0, (parent + first).flatten())
    return chosen.view(*parent.shape, *beams.shape[2:])
