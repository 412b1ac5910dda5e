"""What every attention offers to a decoder."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from captioning.kernels.ops import Rows, at_least_single

Memory = dict[str, Any]
"""What is computed from images alone, by name; each value is indexed by image, as a tensor is."""


class Attention(nn.Module, ABC):
    """Chooses, for each caption, which locations of its image the next word is about.

    A subclass says how well a query and a location match, in :meth:`scores`; the rest is here. One
    that computes its weights or its context in another way overrides :meth:`forward`.

    Args:
        channels: numbers a location has (C; 512 for VGG16's conv5_3).
        query_dim: numbers the query is made of (H; the LSTM's hidden state).
        attention_dim: numbers that queries and keys are projected to (A).

    Attributes:
        static: whether CUDA graphs may replay what the class computes; see
            :attr:`captioning.models.decoders.base.Decoder.static`.
    """

    static: ClassVar[bool] = False

    def __init__(self, channels: int, query_dim: int, attention_dim: int) -> None:
        super().__init__()
        self.key = nn.Linear(channels, attention_dim)
        self.query = nn.Linear(query_dim, attention_dim)

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        """What all words of all captions of an image share: the grid and its keys W_a a_i."""
        return {"grid": grid, "keys": self.key(grid)}

    @abstractmethod
    def scores(
        self, query: Float[Tensor, "images captions units"], memory: Memory
    ) -> Float[Tensor, "images captions locations"]:
        """How well each query matches each location of its image, before the softmax."""

    def forward(
        self, query: Float[Tensor, "rows units"], memory: Memory, rows: Rows
    ) -> tuple[Float[Tensor, "rows locations"], Float[Tensor, "rows channels"]]:
        """Attention weights, which sum to 1 over the locations, and the context they mix.

        Args:
            query: ``self.query`` of each row's state.
            memory: what :meth:`prepare` returned.
            rows: the caption that each row belongs to; captions that have ended have none.
        """
        weights = at_least_single(self.scores(rows.scatter(query), memory)).softmax(-1)
        context = weights.to(memory["grid"].dtype) @ memory["grid"]
        return rows.gather(weights), rows.gather(context)
