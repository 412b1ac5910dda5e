"""The classic captioner without attention: the baseline that attention must beat."""

from jaxtyping import Float
from torch import Tensor, nn

from captioning.kernels.cell import lstm_cell
from captioning.models.attention.additive import Rows
from captioning.models.decoders.base import Linear, Memory, RecurrentDecoder, State


class LSTM(RecurrentDecoder):
    """Sees the mean of the grid once, in its first state, and then only its own words.

    Takes the arguments of :class:`~captioning.models.decoders.base.RecurrentDecoder`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        channels: int,
        *,
        hidden_dim: int = 512,
        embed_dim: int = 512,
        dropout: float = 0.5,
        recurrent_dropout: float = 0.2,
        word_dropout: float = 0.0,
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
        )
        self.recurrent = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        return {"mean": super().prepare(grid)["mean"]}

    def advance(
        self, gates: Tensor, state: State, memory: Memory, rows: Rows, linear: Linear
    ) -> State:
        return lstm_cell(state["cell"], gates, linear(self.recurrent, state["hidden"]))
