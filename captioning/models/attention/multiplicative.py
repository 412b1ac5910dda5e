"""Multiplicative attention (Luong et al. 2015, the "general" score)."""

from jaxtyping import Float
from torch import Tensor

from captioning.models.attention.base import Attention, Memory


class MultiplicativeAttention(Attention):
    """e_i = (W_a a_i) . (W_h h): Luong's a_i' W h, with W as the product of the two projections.

    Args:
        channels: numbers a location has (C).
        query_dim: numbers of the state h (H).
        attention_dim: numbers that both are projected to (A), the rank of W.
    """

    static = True

    def scores(
        self, query: Float[Tensor, "images captions units"], memory: Memory
    ) -> Float[Tensor, "images captions locations"]:
        keys = memory["keys"]
        scores: Tensor = query.to(keys.dtype) @ keys.mT
        return scores
