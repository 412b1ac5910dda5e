"""Multiplicative attention (Luong et al. 2015, the "general" score)."""

from jaxtyping import Float
from torch import Tensor

from captioning.models.attention.base import Attention, Memory


class MultiplicativeAttention(Attention):
    """Scores e_i = (W_a a_i) . (W_h h), that is, Luong's a_i' W h with W = W_a' W_h.

    Args:
        channels: channels of the grid (C).
        query_dim: units of the hidden state h (H).
        attention_dim: dimension of both projections (A), the rank of W.
    """

    static = True

    def scores(
        self, query: Float[Tensor, "images captions units"], memory: Memory
    ) -> Float[Tensor, "images captions locations"]:
        keys = memory["keys"]
        scores: Tensor = query.to(keys.dtype) @ keys.mT
        return scores
