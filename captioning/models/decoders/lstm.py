"""An LSTM captioner without attention, the baseline for attention models."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from captioning.kernels.ops import Rows, lstm_cell
from captioning.models.attention.base import Memory
from captioning.models.decoders.base import State
from captioning.models.decoders.recurrent import RecurrentDecoder


class LSTM(RecurrentDecoder):
    """Reads the mean of the grid once, to initialise its state, and after that only the words.

    Args:
        vocabulary_size: number of tokens (V).
        channels: channels of the grid (C).
        base: the other arguments of :class:`RecurrentDecoder`.
    """

    static = True

    def __init__(self, vocabulary_size: int, channels: int, **base: Any) -> None:
        super().__init__(vocabulary_size, channels, **base)
        hidden_dim = self.hidden_dim
        self.initial_hidden = nn.Linear(channels, hidden_dim)
        self.initial_cell = nn.Linear(channels, hidden_dim)
        self.input_gates = nn.Linear(self.embed_dim, 4 * hidden_dim)
        self.hidden_gates = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        with torch.no_grad():  # forget gate bias of 1 (Jozefowicz et al. 2015)
            self.input_gates.bias[hidden_dim : 2 * hidden_dim] += 1

    def init_state(self, memory: Memory) -> State:
        """h_0 and c_0 from the mean of the grid (Xu et al. 2015, section 3.1.2).

        The paper has a multilayer perceptron for each; here, each is one linear layer, and h_0 its
        tanh.
        """
        mean = memory["mean"]
        hidden, cell = self.initial_hidden(mean).tanh(), self.initial_cell(mean)
        return {"hidden": hidden.to(mean.dtype), "cell": cell.to(mean.dtype)}

    def word_inputs(self, embedded: Float[Tensor, "tokens embed"]) -> dict[str, Tensor]:
        """The words' contributions to the gates."""
        return {"gates": self.input_gates(embedded)}

    def recurrent_step(
        self, inputs: Mapping[str, Tensor], state: State, memory: Memory, rows: Rows
    ) -> State:
        hidden_gates = self.hidden_gates(state["hidden"])
        hidden, cell = lstm_cell(state["cell"], inputs["gates"], hidden_gates)
        return {"hidden": hidden, "cell": cell}
