"""The interface of attentions."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from captioning.kernels.ops import Rows, at_least_single

Memory = dict[str, Any]
"""Values computed from images alone, by name.

Each value is a tensor whose first dimension is the images, or an object that is indexed in the same
way.
"""


class Attention(nn.Module, ABC):
    """Computes, for each caption, weights over the locations of its image and their weighted mean.

    A subclass defines the scores of locations for a query in :meth:`scores`. A subclass that
    computes its weights or its context in another way overrides :meth:`forward`, and
    :meth:`context_at` if its context is not the weighted mean of the grid.

    It has no state: the result depends on the arguments alone. What depends on where a caption has
    looked before is a decoder's, as in ``examples/coverage.py``.

    Args:
        channels: channels of the grid (C; 512 for VGG16's conv5_3).
        query_dim: units of the state from which the query is computed (H; the LSTM's hidden state).
        attention_dim: dimension of the projected queries and keys (A).

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
        """Compute what all captions of an image share: the grid and its keys W_a a_i."""
        return {"grid": grid, "keys": self.key(grid)}

    @abstractmethod
    def scores(
        self, query: Float[Tensor, "images captions units"], memory: Memory
    ) -> Float[Tensor, "images captions locations"]:
        """The score of each location of the image for each query, before the softmax."""

    def forward(
        self, query: Float[Tensor, "rows units"], memory: Memory, rows: Rows
    ) -> tuple[Float[Tensor, "rows locations"], Float[Tensor, "rows channels"]]:
        """The attention weights, which sum to 1 over the locations, and the context vector.

        Args:
            query: ``self.query`` of the state of each row.
            memory: the result of :meth:`prepare`.
            rows: the caption of each row; captions that have ended have no row.
        """
        weights = at_least_single(self.scores(rows.scatter(query), memory)).softmax(-1)
        context = weights.to(memory["grid"].dtype) @ memory["grid"]
        return rows.gather(weights), rows.gather(context)

    def context_at(
        self, location: Int[Tensor, " rows"], memory: Memory, rows: Rows
    ) -> Float[Tensor, "rows channels"]:
        """The context if a single location has all the weight, as with hard attention.

        Args:
            location: the location of each row.
            memory: the result of :meth:`prepare`.
            rows: the caption of each row.
        """
        context: Tensor = memory["grid"][rows.image, location]
        return context
