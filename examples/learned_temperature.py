"""An attention of one's own: additive attention whose softmax has a learned temperature.

python train.py --config-dir examples/conf model=learned_temperature experiment=scenes
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from captioning.kernels.ops import Rows, additive_attention
from captioning.models.attention.additive import AdditiveAttention
from captioning.models.attention.base import Memory


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
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    def forward(
        self, query: Float[Tensor, "rows units"], memory: Memory, rows: Rows
    ) -> tuple[Float[Tensor, "rows locations"], Float[Tensor, "rows channels"]]:
        # e = v . tanh(...) is linear in v, so that dividing v divides e.
        score = self.score / self.log_temperature.exp()
        return additive_attention(query, memory["keys"], score, memory["grid"], rows)
