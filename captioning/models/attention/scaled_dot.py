"""Scaled dot-product attention with several heads (Vaswani et al. 2017, section 3.2)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from captioning.kernels.ops import Rows, at_least_single
from captioning.models.attention.base import Attention, Memory
from captioning.support.errors import CaptioningError


class ScaledDotAttention(Attention):
    """Each head has the weights softmax(q . k / sqrt(d)); contexts are concatenated and projected.

    The returned weights are the mean over the heads.

    Args:
        channels: channels of the grid (C).
        query_dim: units of the hidden state h (H).
        attention_dim: dimension of the queries of all heads together (A).
        heads: number of heads, a divisor of both ``attention_dim`` and ``channels``.
    """

    static = True

    def __init__(self, channels: int, query_dim: int, attention_dim: int, heads: int = 8) -> None:
        super().__init__(channels, query_dim, attention_dim)
        if heads < 1 or attention_dim % heads or channels % heads:
            raise CaptioningError(
                f"model.attention.heads={heads} must divide model.attention_dim={attention_dim} "
                f"and the grid's {channels} channels."
            )
        self.heads = heads
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        return super().prepare(grid) | {"values": self.value(grid)}

    def scores(
        self, query: Float[Tensor, "images captions units"], memory: Memory
    ) -> Float[Tensor, "images captions locations"]:
        """The logarithm of the mean weight over the heads, whose softmax is that mean."""
        return self.head_weights(query, memory).mean(2).log()

    def head_weights(
        self, query: Float[Tensor, "images captions units"], memory: Memory
    ) -> Float[Tensor, "images captions heads locations"]:
        """The weights softmax(q . k / sqrt(d)) of each head, whose queries and keys have size d."""
        queries = query.view(*query.shape[:2], self.heads, -1)  # B x K x heads x d
        keys = memory["keys"].unflatten(-1, (self.heads, -1))  # B x P x heads x d
        products = torch.einsum("bkhd, bphd -> bkhp", queries, keys)
        return at_least_single(products * keys.shape[-1] ** -0.5).softmax(-1)

    def forward(
        self, query: Float[Tensor, "rows units"], memory: Memory, rows: Rows
    ) -> tuple[Float[Tensor, "rows locations"], Float[Tensor, "rows channels"]]:
        weights = self.head_weights(rows.scatter(query), memory)
        values = memory["values"].unflatten(-1, (self.heads, -1))  # B x P x heads x C / heads
        contexts = torch.einsum("bkhp, bphc -> bkhc", weights.to(values.dtype), values)
        context = self.output(contexts.flatten(2))
        return rows.gather(weights.mean(2)), rows.gather(context)

    def context_at(
        self, location: Int[Tensor, " rows"], memory: Memory, rows: Rows
    ) -> Float[Tensor, "rows channels"]:
        context: Tensor = self.output(memory["values"][rows.image, location])
        return context
