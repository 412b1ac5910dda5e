"""An attention of one's own: additive attention whose softmax has a learned temperature.

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
    """alpha = softmax(e / T), where T is learned.

    Args:
        channels: numbers a location has (C).
        query_dim: numbers of the state h (H).
        attention_dim: units of the hidden layer (A).
        temperature: T at the start of training.
    """

    static = True  # it computes the same operations at every step: CUDA graphs may replay them

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
        """The scores e / T. That is all: the base class makes weights and context of them."""
        return super().scores(query, memory) / self.log_temperature.exp()

    def forward(
        self, query: Float[Tensor, "rows units"], memory: Memory, rows: Rows
    ) -> tuple[Float[Tensor, "rows locations"], Float[Tensor, "rows channels"]]:
        # The same, by the compiled op: e = v . tanh(...) is linear in v, so that dividing v by T
        # divides e. This method may be left out; training then takes longer.
        score = self.score / self.log_temperature.exp()
        return additive_attention(query, memory["keys"], score, memory["grid"], rows)
