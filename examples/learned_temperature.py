"""Example of a new attention: additive attention whose softmax has a learned temperature.

python train.py --config-dir examples/conf experiment=scenes model=learned_temperature
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from captioning.kernels.ops import Rows, additive_attention
from captioning.models.attention.additive import AdditiveAttention
from captioning.models.attention.base import Memory
from captioning.support.errors import CaptioningError


class LearnedTemperature(AdditiveAttention):
    """Additive attention with alpha = softmax(e / T), where the temperature T is learned.

    Args:
        channels: channels of the grid (C).
        query_dim: units of the hidden state h (H).
        attention_dim: units of the hidden layer (A).
        temperature: T at the start of training.
    """

    static = True  # every step has the same operations, so that CUDA graphs may replay them

    def __init__(
        self, channels: int, query_dim: int, attention_dim: int, temperature: float = 1.0
    ) -> None:
        super().__init__(channels, query_dim, attention_dim)
        if temperature <= 0:
            raise CaptioningError(
                f"model.attention.temperature={temperature}: choose a positive number."
            )
        # The logarithm is learned, so that T stays positive.
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    def scores(
        self, query: Float[Tensor, "images captions units"], memory: Memory
    ) -> Float[Tensor, "images captions locations"]:
        """The scores e / T, from which the base class computes the weights and the context."""
        return super().scores(query, memory) / self.log_temperature.exp()

    def forward(
        self, query: Float[Tensor, "rows units"], memory: Memory, rows: Rows
    ) -> tuple[Float[Tensor, "rows locations"], Float[Tensor, "rows channels"]]:
        # Computes the same with a compiled op: e = v . tanh(...) is linear in v, so that dividing v
        # by T divides e by T. This method may be left out; training then takes longer.
        score = self.score / self.log_temperature.exp()
        return additive_attention(query, memory["keys"], score, memory["grid"], rows)
