"""Show, Attend and Tell (Xu et al. 2015) with soft attention."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from captioning.kernels.cell import lstm_cell
from captioning.kernels.dropout import Dropout
from captioning.models.attention.additive import AdditiveAttention, Rows
from captioning.models.decoders.base import (
    Linear,
    Memory,
    RecurrentDecoder,
    State,
    check_settings,
)


class AttentionLSTM(RecurrentDecoder):
    """An LSTM that looks at a soft-weighted mix of the image's locations for every word.

    Takes the arguments of :class:`~captioning.models.decoders.base.RecurrentDecoder` and:

    Args:
        attention_dim: units of the attention's hidden layer (A).
        gate: how much of the context passes, beta_t = sigmoid(f_beta(h_{t-1})): one number a word
            (``scalar``, the paper's section 4.2.1), one a channel (``channel``), or all (``none``).
        grid_dropout: share of the grid's numbers that are dropped in training, one pattern an
            image and step.
        word_query: let the last word choose, too, where to look. The paper's query is h_{t-1}
            alone, which has not read word t-1 when it chooses the locations for word t.
        deep_output: let the context take part in the output layer (L_z z); without it, the words
            are predicted from h_t and the last word alone.
    """

    def __init__(
        self,
        vocabulary_size: int,
        channels: int,
        *,
        hidden_dim: int = 512,
        embed_dim: int = 512,
        attention: str = "additive",
        attention_dim: int = 512,
        dropout: float = 0.5,
        recurrent_dropout: float = 0.2,
        word_dropout: float = 0.0,
        grid_dropout: float = 0.0,
        gate: Literal["scalar", "channel", "none"] = "channel",
        word_query: bool = False,
        deep_output: bool = True,
        tie_embeddings: bool = False,
        normalize_grid: bool = True,
    ) -> None:
        super().__init__(
            vocabulary_size,
            channels,
            hidden_dim=hidden_dim,
            embed_dim=embed_dim,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            word_dropout=word_dropout,
            tie_embeddings=tie_embeddings,
            normalize_grid=normalize_grid,
            query_dim=attention_dim if word_query else 0,
        )
        check_settings({"attention_dim": attention_dim}, {"grid_dropout": grid_dropout})
        self.word_query = word_query
        self.attention = AdditiveAttention(channels, attention_dim)
        gate_dim = {"scalar": 1, "channel": channels, "none": 0}[gate]
        # One product of the state serves the LSTM's gates, the attention's query and the gate beta.
        self.shares = [4 * hidden_dim, attention_dim, gate_dim]
        self.recurrent = nn.Linear(hidden_dim, sum(self.shares))
        self.context_gates = nn.Linear(channels, 4 * hidden_dim, bias=False)
        self.output_context = nn.Linear(channels, embed_dim, bias=False) if deep_output else None
        self.grid_dropout = Dropout(grid_dropout)

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        memory = super().prepare(grid)
        return memory | self.attention.project(self.grid_dropout(memory["grid"]))

    def advance(
        self, gates: Tensor, state: State, memory: Memory, rows: Rows, linear: Linear
    ) -> State:
        of_hidden = linear(self.recurrent, state["hidden"])
        recurrent, query, beta = torch.split(of_hidden, self.shares, -1)
        if self.word_query:
            gates, of_word = torch.split(gates, self.shares[:2], -1)
            query = query + of_word
        attention, context = self.attention(query, memory, rows)
        if self.shares[-1]:
            context = beta.sigmoid() * context
        of_context = linear(self.context_gates, context)
        state = lstm_cell(state["cell"], gates, recurrent, of_context)
        return state | {"attention": attention, "context": context}

    def read_out(self, embedded: Tensor, hidden: Tensor, context: Tensor | None) -> Tensor:
        return super().read_out(
            embedded, hidden, context if self.output_context is not None else None
        )

    def read_context(self, context: Tensor) -> Tensor:
        assert self.output_context is not None
        projected: Tensor = self.output_context(context)
        return projected
