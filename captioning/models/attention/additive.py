"""Additive attention (Bahdanau et al. 2015), the soft attention of Xu et al. 2015, eq. 4 and 5."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from captioning.kernels.ops import AdditiveKeys, Rows, additive_attention
from captioning.models.attention.base import Attention, Memory


class AdditiveAttention(Attention):
    """Attention by a layer with tanh; v, W_a and W_h are learned.

        e_i = v . tanh(W_a a_i + W_h h)    alpha = softmax(e)    z = sum_i alpha_i a_i

    Args:
        channels: channels of the grid (C).
        query_dim: units of the hidden state h (H).
        attention_dim: units of the attention layer (A).
    """

    static = True

    def __init__(self, channels: int, query_dim: int, attention_dim: int) -> None:
        super().__init__(channels, query_dim, attention_dim)
        self.score = nn.Parameter(torch.empty(attention_dim).normal_(std=attention_dim**-0.5))

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        return {"grid": grid, "keys": AdditiveKeys(self.key(grid))}

    def scores(
        self, query: Float[Tensor, "images captions units"], memory: Memory
    ) -> Float[Tensor, "images captions locations"]:
        """The scores v . tanh(W_a a_i + W_h h)."""
        keys = memory["keys"].keys
        scores: Tensor = (keys[:, None] + query[:, :, None]).tanh() @ self.score
        return scores

    def forward(
        self, query: Float[Tensor, "rows units"], memory: Memory, rows: Rows
    ) -> tuple[Float[Tensor, "rows locations"], Float[Tensor, "rows channels"]]:
        if type(self).scores is not AdditiveAttention.scores:  # a subclass has other scores
            return super().forward(query, memory, rows)
        # The base class would compute the same from `scores`; the op is many times faster.
        return additive_attention(query, memory["keys"], self.score, memory["grid"], rows)
