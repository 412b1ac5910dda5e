"""Example of a new decoder: soft attention with a GRU in place of the LSTM.

python train.py --config-dir examples/conf experiment=scenes model=attn_gru
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
    """A GRU, h_t = GRU([E y_{t-1}; z_t], h_{t-1}), with z_t from additive attention with h_{t-1}.

    The base class has the embeddings, the output layer, dropout and the loop over the words. With
    these, training, greedy decoding, beam search and sampling work without further code.

    Args:
        vocabulary_size: number of tokens (V).
        channels: channels of the grid (C).
        attention_dim: units of the attention's hidden layer (A).
        base: the other arguments of
            :class:`~captioning.models.decoders.recurrent.RecurrentDecoder`, such as ``hidden_dim``
            and ``dropout``.
    """

    static = True  # every step has the same operations, so that CUDA graphs may replay them

    def __init__(
        self, vocabulary_size: int, channels: int, *, attention_dim: int = 512, **base: Any
    ) -> None:
        super().__init__(vocabulary_size, channels, **base)
        self.attention = AdditiveAttention(channels, self.hidden_dim, attention_dim)
        self.initial_hidden = nn.Linear(channels, self.hidden_dim)
        self.gru = nn.GRUCell(self.embed_dim + channels, self.hidden_dim)

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        """What is computed once per image: its grid, the grid's mean, and the attention's keys."""
        memory = super().prepare(grid)
        return memory | self.attention.prepare(memory["grid"])

    def init_state(self, memory: Memory) -> State:
        """h_0 from the mean of the grid (Xu et al. 2015, section 3.1.2)."""
        mean = memory["mean"]
        # In mixed precision, layers return bfloat16; the state stays in the precision of the mean.
        return {"hidden": self.initial_hidden(mean).tanh().to(mean.dtype)}

    def word_inputs(self, embedded: Float[Tensor, "tokens embed"]) -> dict[str, Tensor]:
        """The part of a step that depends on its input word alone: the embedding E y_{t-1}."""
        return {"embedded": embedded}

    def recurrent_step(
        self, inputs: Mapping[str, Tensor], state: State, memory: Memory, rows: Rows
    ) -> State:
        """Process one word: compute alpha_t and z_t by attention, and update h_t."""
        hidden = state["hidden"]
        weights, context = self.attention(self.attention.query(hidden), memory, rows)
        seen = torch.cat([inputs["embedded"], context.to(inputs["embedded"].dtype)], -1)
        new = self.gru(seen, hidden).to(hidden.dtype)
        return {"hidden": new, "context": context, "attention": weights}
