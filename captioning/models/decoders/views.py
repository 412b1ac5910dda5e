"""One decoder that reads several views of each image, and writes one caption of them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from captioning.models.attention.base import Memory
from captioning.models.decoders.base import Decoder, State, Step, TeacherForced
from captioning.models.decoders.ensemble import Ensemble


class ViewDecoder(Decoder):
    """A decoder that reads the grid of a view, and whose attention is that over the whole picture.

    Args:
        decoder: any decoder.
        placement: view's locations x picture's locations, the share of each location of the view
            in each location of the picture; see :meth:`captioning.data.views.View.placement`.
    """

    placement: Tensor

    def __init__(
        self, decoder: Decoder, placement: Float[Tensor, "view_locations picture_locations"]
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("placement", placement, persistent=False)
        self.vocabulary_size = decoder.vocabulary_size
        self.words = decoder.words

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        return self.decoder.prepare(grid)

    def start(self, memory: Memory, captions: int) -> State:
        return self.decoder.start(memory, captions)

    def step(self, tokens: Int[Tensor, "images captions"], state: State, memory: Memory) -> Step:
        step = self.decoder.step(tokens, state, memory)
        return step._replace(attention=self._placed(step.attention))

    def forward(
        self,
        grid: Float[Tensor, "images locations channels"],
        tokens: Int[Tensor, "images captions length"],
    ) -> TeacherForced:
        result: TeacherForced = self.decoder(grid, tokens)
        return replace(
            result,
            coverage=self._placed(result.coverage),
            attention=self._placed(result.attention),
            location=None,
        )

    def _placed(self, attention: Tensor | None) -> Tensor | None:
        if attention is None:
            return None
        with torch.autocast(attention.device.type, enabled=False):  # which would round the weights
            return attention.to(self.placement.dtype) @ self.placement


class ViewEnsemble(Ensemble):
    """Averages the probabilities that one decoder gives to the next word for each view.

    The grids of an image's views are one after another: images x (views x locations) x channels.

    Args:
        decoder: any decoder, an ensemble among them.
        placements: of each view; see :class:`ViewDecoder`.
    """

    def __init__(self, decoder: Decoder, placements: Sequence[Tensor]) -> None:
        super().__init__([ViewDecoder(decoder, placement) for placement in placements])

    def grids(self, grid: Float[Tensor, "images locations channels"]) -> Sequence[Tensor]:
        return grid.chunk(len(self.members), 1)
