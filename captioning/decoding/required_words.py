"""Grid beam search (Hokamp and Liu, ACL 2017): captions with required words.

The partial captions of an image are in banks: bank b has those that contain b of the C required
words. A bank's captions are continued by any word, and then stay in it, or by a required word that
they do not have yet, and then are in the next bank. Each bank keeps its own best ones, so that
captions with the required words need not be more probable than those without them. A caption may
end in bank C alone.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from captioning.kernels.ops import topk
from captioning.support.special_tokens import END


def continue_banks(
    log_probs: Float[Tensor, "images captions words"],
    total: Float[Tensor, "images captions"],
    history: Int[Tensor, "images captions length"],
    room: Int[Tensor, "images banks"],
    required: Sequence[int],
    size: int,
    words_left: int,
) -> tuple[
    Float[Tensor, "images chosen"], Int[Tensor, "images chosen"], Int[Tensor, "images chosen"]
]:
    """Choose the best continuations of each bank.

    Args:
        log_probs: of the next word, -inf where it is not allowed.
        total: the log-probability of each partial caption; -inf where there is none.
        history: the words of each partial caption. They are ordered by bank.
        room: the sizes of the banks, of which the last one's becomes smaller as captions end.
        required: the C required words; there are C + 1 banks.
        size: of a bank.
        words_left: how many words may follow the next one.

    Returns:
        As :meth:`captioning.decoding.beam.Beam.choose`.
    """
    banks = 1 + len(required)
    each = total.shape[1] // banks  # partial captions in a bank
    needed = torch.tensor(required, device=history.device)
    missing = ~(history[..., None] == needed).any(-2)  # images x captions x C
    if history.shape[-1] == 0:
        total = total.clone()
        total[:, 1:] = -torch.inf  # the empty caption is in bank 0
    to_next = total[..., None] + log_probs[..., needed].where(missing, -torch.inf)
    within = log_probs.clone()
    within[..., needed] = within[..., needed].where(~missing, -torch.inf)
    within[..., END] = within[..., END].where(~missing.any(-1), -torch.inf)
    within, words = topk(within, size)
    within = total[..., None] + within

    chosen: list[tuple[Tensor, Tensor, Tensor]] = []
    for bank in range(banks):
        here = slice(bank * each, (bank + 1) * each)
        before = slice((bank - 1) * each, bank * each)
        scores, following = [within[:, here].flatten(1)], [words[:, here].flatten(1)]
        parents = [torch.arange(each, device=total.device).repeat_interleave(words.shape[-1])]
        parents[0] += here.start
        if bank > 0:
            scores.append(to_next[:, before].flatten(1))
            following.append(needed.expand_as(to_next[:, before]).flatten(1))
            parents.append(torch.arange(each, device=total.device).repeat_interleave(len(needed)))
            parents[1] += before.start
        candidates = torch.cat(scores, 1)
        if len(required) - bank > words_left:  # the missing words would not fit any more
            candidates = torch.full_like(candidates, -torch.inf)
        best, place = candidates.topk(min(size, candidates.shape[1]))
        best = torch.nn.functional.pad(best, (0, size - best.shape[1]), value=-torch.inf)
        place = torch.nn.functional.pad(place, (0, size - place.shape[1]))
        beyond = torch.arange(size, device=total.device) >= room[:, bank, None]
        # Where the last bank is full of ended captions, the search of the image is over.
        best = best.masked_fill(beyond | (room[:, -1:] == 0), -torch.inf)
        chosen.append((best, torch.cat(parents)[place], torch.cat(following, 1).gather(1, place)))
    best, parent, last = (torch.cat(parts, 1) for parts in zip(*chosen, strict=True))
    return best, parent, last
