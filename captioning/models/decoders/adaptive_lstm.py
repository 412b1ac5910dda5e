"""Adaptive attention with a visual sentinel (Lu et al. 2017, "Knowing When to Look")."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from captioning.kernels.ops import Rows, lstm_cell
from captioning.models.attention.additive import AdditiveAttention
from captioning.models.attention.base import Memory
from captioning.models.decoders.base import State
from captioning.models.decoders.recurrent import RecurrentDecoder, check_sizes


class AdaptiveLSTM(RecurrentDecoder):
    """An LSTM that decides at every word how much it looks at the image, and then where.

    The query of the attention is the state h_t that has read the last word, unlike in
    :class:`~captioning.models.decoders.attn_lstm.AttentionLSTM`. Beside the locations, it can
    choose the visual sentinel s_t, which is a part of what the LSTM remembers (numbers of the
    equations in arXiv:1612.01887v2, which omits biases):

        v_i = ReLU(W_a a_i)    v^g = ReLU(W_b mean_i a_i)    x_t = [w_t; v^g]             (14-16)
        h_t, m_t = LSTM(x_t, h_{t-1}, m_{t-1})                                                (4)
        z_ti = w_h . tanh(W_v v_i + W_g h_t)    alpha_t = softmax(z_t)                     (6, 7)
        c_t = sum_i alpha_ti v_i                                                              (8)
        g_t = sigmoid(W_x x_t + W_h h_{t-1})    s_t = g_t * tanh(m_t)                     (9, 10)
        alpha-hat_t = softmax([z_t; w_h . tanh(W_s s_t + W_g h_t)])    beta_t = its last     (12)
        c-hat_t = beta_t s_t + (1 - beta_t) c_t                                              (11)
        p_t = softmax(W_p (c-hat_t + h_t))                                                   (13)

    W_p is the product of ``output_words`` and ``output_hidden``, with E units in between, as in the
    other decoders. The state is 0 before the first word, as v^g is part of every input. The
    attention weights are those of the locations in alpha-hat, which sum to 1 - beta_t.

    Args:
        vocabulary_size: number of tokens (V).
        channels: channels of the grid (C).
        attention_dim: dimension to which attention projects states and locations (A).
        base: the other arguments of
            :class:`~captioning.models.decoders.recurrent.RecurrentDecoder`.
    """

    static = True
    partial_attention = True

    def __init__(
        self, vocabulary_size: int, channels: int, *, attention_dim: int = 512, **base: Any
    ) -> None:
        super().__init__(vocabulary_size, channels, **base)
        check_sizes(attention_dim=attention_dim)
        hidden_dim = self.hidden_dim
        self.locations = nn.Linear(channels, hidden_dim)  # W_a
        self.image = nn.Linear(channels, hidden_dim)  # W_b
        self.word_gates = nn.Linear(self.embed_dim, 4 * hidden_dim)
        self.image_gates = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.hidden_gates = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.word_sentinel = nn.Linear(self.embed_dim, hidden_dim)  # W_x, for w_t
        self.image_sentinel = nn.Linear(hidden_dim, hidden_dim, bias=False)  # W_x, for v^g
        self.hidden_sentinel = nn.Linear(hidden_dim, hidden_dim, bias=False)  # W_h
        self.attention = AdditiveAttention(hidden_dim, hidden_dim, attention_dim)  # W_v, W_g, w_h
        self.sentinel_key = nn.Linear(hidden_dim, attention_dim)  # W_s
        with torch.no_grad():  # forget gate bias of 1 (Jozefowicz et al. 2015)
            self.word_gates.bias[hidden_dim : 2 * hidden_dim] += 1

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        memory = super().prepare(grid)
        locations, image = self.locations(memory["grid"]).relu(), self.image(memory["mean"]).relu()
        return {
            **self.attention.prepare(locations),
            "mean": memory["mean"],
            "gates": self.image_gates(image),
            "sentinel": self.image_sentinel(image),
        }

    def init_state(self, memory: Memory) -> State:
        """h_0 = m_0 = 0."""
        mean = memory["mean"]
        zeros = mean.new_zeros(mean.shape[0], self.hidden_dim)
        return {"hidden": zeros, "cell": zeros}

    def word_inputs(self, embedded: Float[Tensor, "tokens embed"]) -> dict[str, Tensor]:
        """The words' contributions to the gates of the LSTM and to the gate of the sentinel."""
        return {"gates": self.word_gates(embedded), "sentinel": self.word_sentinel(embedded)}

    def recurrent_step(
        self, inputs: Mapping[str, Tensor], state: State, memory: Memory, rows: Rows
    ) -> State:
        """Process one word: h_t, m_t and the sentinel s_t."""
        before, image = state["hidden"], rows.image
        hidden, cell = lstm_cell(
            state["cell"], inputs["gates"], memory["gates"][image], self.hidden_gates(before)
        )
        gate = inputs["sentinel"] + memory["sentinel"][image] + self.hidden_sentinel(before)
        return {"hidden": hidden, "cell": cell, "sentinel": gate.sigmoid() * cell.tanh()}

    def read_out(self, states: Sequence[State], memory: Memory, rows: Sequence[Rows]) -> State:
        """Attend for all words at once, since the next state does not depend on the attention.

        Then the gradients with respect to the locations and their keys are computed once. Without
        gradients, word after word takes less memory.
        """
        together = len(states) if torch.is_grad_enabled() else 1
        parts = []
        for first in range(0, len(states), together):
            some = slice(first, first + together)
            # Each word of a caption takes the place of a caption.
            index = [part.index * together + word for word, part in enumerate(rows[some])]
            words = rows[0]._replace(index=torch.cat(index), captions=rows[0].captions * together)
            parts.append(self.attend(super().read_out(states[some], memory, rows), memory, words))
        return super().read_out(parts, memory, rows)

    def attend(self, state: State, memory: Memory, rows: Rows) -> State:
        """Add the context c-hat_t, and the weights of the locations in alpha-hat_t."""
        query, sentinel = self.attention.query(state["hidden"]), state["sentinel"]
        weights, context = self.attention(query, memory, rows)  # alpha_t, c_t
        # With alpha = e^z / sum e^z, the logarithm of that sum is z_i - log alpha_i for every
        # location i. At the one with the largest weight, it is computed without loss of precision.
        largest, location = weights.max(-1)
        keys = memory["keys"].keys[rows.image, location]
        log_sum = self.score(keys, query) - largest.log()
        away = self.score(self.sentinel_key(sentinel), query) - log_sum
        beta, looked = away.sigmoid()[:, None], (-away).sigmoid()[:, None]  # looked = 1 - beta
        context = beta * sentinel + looked * context
        return state | {"context": context, "attention": looked * weights}

    def score(
        self, keys: Float[Tensor, "rows units"], query: Float[Tensor, "rows units"]
    ) -> Float[Tensor, " rows"]:
        """The score w_h . tanh(key + query) of one key for each row, in single precision."""
        score = self.attention.score
        return ((keys.to(score.dtype) + query).tanh() * score).sum(-1)

    def output_logits(
        self,
        embedded: Float[Tensor, "tokens embed"],
        hidden: Float[Tensor, "tokens hidden"],
        context: Float[Tensor, "tokens hidden"] | None,
    ) -> Float[Tensor, "tokens words"]:
        """The logits W_p (c-hat_t + h_t); they do not depend on the word that was read."""
        del embedded
        assert context is not None
        logits: Tensor = self.output_words(self.dropout(self.output_hidden(hidden + context)))
        return logits
