"""Scaled dot-product attention with several heads (Vaswani et al. 2017, section 3.2)."""

from jaxtyping import Float
from torch import Tensor, nn

from captioning.kernels.ops import Rows
from captioning.models.attention.base import Attention, Memory
from captioning.support.errors import CaptioningError


class ScaledDotAttention(Attention):
    """alpha = softmax(q . k / sqrt(d)) in each head; the heads' contexts are joined and projected.

    The weights that are returned are the mean over the heads.

    Args:
        channels: numbers a location has (C).
        query_dim: numbers of the state h (H).
        attention_dim: numbers of all heads' queries together (A).
        heads: how many; divides both ``attention_dim`` and ``channels``.
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
        """softmax(q . k / sqrt(d)) of each head."""
        keys = memory["keys"].unflatten(-1, (self.heads, -1))  # B x P x heads x d
        query = query.to(keys.dtype).unflatten(-1, (self.heads, -1))
        scores: Tensor = (query.transpose(1, 2) @ keys.permute(0, 2, 3, 1)).transpose(1, 2)
        return (scores.float() * keys.shape[-1] ** -0.5).softmax(-1)

    def forward(
        self, query: Float[Tensor, "rows units"], memory: Memory, rows: Rows
    ) -> tuple[Float[Tensor, "rows locations"], Float[Tensor, "rows channels"]]:
        weights = self.head_weights(rows.scatter(query), memory)
        values = memory["values"].unflatten(-1, (self.heads, -1)).transpose(1, 2)
        heads = weights.to(values.dtype).transpose(1, 2) @ values  # B x heads x K x C / heads
        context = self.output(heads.transpose(1, 2).flatten(2))
        return rows.gather(weights.mean(2)), rows.gather(context)
