"""Example of an attention with a state: coverage, how much it has looked at each location.

python train.py --config-dir examples/conf experiment=scenes model=coverage
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from captioning.kernels.ops import Rows, at_least_single
from captioning.models.attention.additive import AdditiveAttention
from captioning.models.attention.base import Memory
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.base import State
from captioning.support.errors import CaptioningError


class CoverageLSTM(AttentionLSTM):
    """Additive attention that also sees the coverage c_i (See et al. 2017, eq. 10 and 11).

        c_i = sum of alpha_i of the words before    e_i = v . tanh(W_a a_i + W_h h + w_c c_i)

    What an attention remembers of a caption must be in the state of the decoder. Decoding selects
    and reorders the state with the captions, and would not do so with an attribute of a module.

    Args:
        vocabulary_size: number of tokens (V).
        channels: channels of the grid (C).
        base: the other arguments of
            :class:`~captioning.models.decoders.attn_lstm.AttentionLSTM`.
    """

    static = True  # every step has the same operations, so that CUDA graphs may replay them

    def __init__(self, vocabulary_size: int, channels: int, **base: Any) -> None:
        super().__init__(vocabulary_size, channels, **base)
        if not isinstance(self.attention, AdditiveAttention):
            raise CaptioningError("model.attention: coverage is for additive attention alone.")
        self.coverage = nn.Parameter(torch.zeros_like(self.attention.score))  # w_c

    def init_state(self, memory: Memory) -> State:
        """Before the first word, nothing is covered."""
        images, locations, _ = memory["grid"].shape
        return super().init_state(memory) | {"covered": memory["mean"].new_zeros(images, locations)}

    def attend(
        self, query: Float[Tensor, "rows units"], state: State, memory: Memory, rows: Rows
    ) -> State:
        """The weights, the context, and the coverage that the next word sees."""
        grid, keys = memory["grid"], memory["keys"].keys
        covered = rows.scatter(state["covered"])[..., None] * self.coverage
        hidden = keys[:, None] + rows.scatter(query)[:, :, None] + covered
        alpha = at_least_single(hidden.tanh() @ self.attention.score).softmax(-1)
        context, weights = rows.gather(alpha.to(grid.dtype) @ grid), rows.gather(alpha)
        return {"attention": weights, "context": context, "covered": state["covered"] + weights}
