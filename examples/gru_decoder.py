"""A decoder of one's own: soft attention with a GRU in place of the LSTM.

python train.py --config-dir examples/conf model=attn_gru experiment=scenes
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from captioning.kernels.ops import Rows
from captioning.models.attention.additive import AdditiveAttention
from captioning.models.attention.base import Memory
from captioning.models.decoders.base import State
from captioning.models.decoders.recurrent import RecurrentDecoder


class AttentionGRU(RecurrentDecoder):
    """h_t = GRU([E y_{t-1}; z_t], h_{t-1}), with z_t from additive attention by h_{t-1}.

    Args:
        vocabulary_size: number of tokens (V).
        channels: numbers a grid location has (C).
        attention_dim: units of the attention's hidden layer (A).
        base: the arguments of :class:`RecurrentDecoder`, such as ``hidden_dim`` and ``dropout``.
    """

    def __init__(
        self, vocabulary_size: int, channels: int, *, attention_dim: int = 512, **base: Any
    ) -> None:
        super().__init__(vocabulary_size, channels, **base)
        self.attention = AdditiveAttention(channels, self.hidden_dim, attention_dim)
        self.initial_hidden = nn.Linear(channels, self.hidden_dim)
        self.gru = nn.GRUCell(self.embed_dim + channels, self.hidden_dim)

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        memory = super().prepare(grid)
        return memory | self.attention.prepare(memory["grid"])

    def init_state(self, memory: Memory) -> State:
        return {"hidden": self.initial_hidden(memory["mean"]).tanh().to(memory["mean"].dtype)}

    def word_inputs(self, embedded: Float[Tensor, "tokens embed"]) -> dict[str, Tensor]:
        return {"embedded": embedded}

    def recurrent_step(
        self, inputs: Mapping[str, Tensor], state: State, memory: Memory, rows: Rows
    ) -> State:
        query = self.attention.query(state["hidden"])
        weights, context = self.attention(query, memory, rows)
        seen = torch.cat([inputs["embedded"], context.to(inputs["embedded"].dtype)], -1)
        hidden = self.gru(seen, state["hidden"]).to(state["hidden"].dtype)
        return {"hidden": hidden, "context": context, "attention": weights}
