"""Show, Attend and Tell (Xu et al. 2015) with hard attention: the LSTM sees one location a word."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from captioning.kernels.ops import Rows
from captioning.models.attention.base import Memory
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.base import State
from captioning.models.decoders.recurrent import check_shares


class HardAttentionLSTM(AttentionLSTM):
    """The model of soft attention, except that training samples the location of each word.

    In training, a location s_t is drawn from the attention weights, and the context is z_t = a_i of
    that location i (section 4.1 of the paper, with the authors' temperature of 1). The
    other training steps, and all of validation and test, use the expectation z_t = sum_i alpha_ti
    a_i, which is soft attention. As in the authors' code, a training step either samples for all of
    its captions or for none.

    Sampling has no derivative; the weights learn from the objective ``hard_attention``.

    Args:
        vocabulary_size: number of tokens (V).
        channels: channels of the grid (C).
        sampling_share: probability that a training step samples locations (the authors': one half).
        base: the other arguments of
            :class:`~captioning.models.decoders.attn_lstm.AttentionLSTM`.
    """

    static = True
    needs_objective = "hard_attention"

    def __init__(
        self, vocabulary_size: int, channels: int, *, sampling_share: float = 0.5, **base: Any
    ) -> None:
        super().__init__(vocabulary_size, channels, **base)
        check_shares(sampling_share=sampling_share)
        self.sampling_share = sampling_share

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        memory = super().prepare(grid)
        if self.training:
            samples = torch.rand(1, device=grid.device) < self.sampling_share
        else:
            samples = torch.zeros(1, dtype=torch.bool, device=grid.device)
        return memory | {"samples": samples.expand(grid.shape[0])}

    def attend(
        self, query: Float[Tensor, "rows units"], state: State, memory: Memory, rows: Rows
    ) -> State:
        """The weights alpha_t, the context z_t, and the location s_t (-1: the expectation)."""
        looked = super().attend(query, state, memory, rows)
        weights, expectation = looked["attention"], looked["context"]
        if not self.training:
            return looked | {"location": rows.index.new_full(rows.index.shape, -1)}
        samples, location = memory["samples"][rows.image], sample(weights.detach())
        context = self.attention.context_at(location, memory, rows).to(expectation.dtype)
        return looked | {
            "context": context.where(samples[:, None], expectation),
            "location": location.where(samples, -1),
        }


def sample(weights: Float[Tensor, "rows locations"]) -> Int[Tensor, " rows"]:
    """Draw a location for each row with the probabilities ``weights``.

    It is the first location at which the cumulative weights exceed a uniform random number. Unlike
    ``torch.multinomial``, this does not wait for a GPU.
    """
    cumulative = weights.cumsum(-1)
    drawn = torch.rand_like(cumulative[:, :1]) * cumulative[:, -1:]
    return (cumulative <= drawn).sum(-1).clamp(max=weights.shape[-1] - 1)
