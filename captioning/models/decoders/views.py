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
    """A decoder that reads the grid of a view, and describes the whole picture.

    Args:
        decoder: any decoder.
        placement: view's locations x picture's locations, the share of each location of the view
            in each location of the picture.
        exchanged: two words, by id, that change places between the captions of the picture and
            those of the view, as left and right in a mirror image; none if it is empty.
    """

    placement: Tensor
    order: Tensor

    def __init__(
        self,
        decoder: Decoder,
        placement: Float[Tensor, "view_locations picture_locations"],
        exchanged: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("placement", placement, persistent=False)
        order = torch.arange(decoder.vocabulary_size)
        order[[*exchanged]] = order[[*reversed(exchanged)]]
        self.register_buffer("order", order, persistent=False)  # its own inverse
        self.vocabulary_size = decoder.vocabulary_size
        self.words = decoder.words

    def prepare(self, grid: Float[Tensor, "images locations channels"]) -> Memory:
        return self.decoder.prepare(grid)

    def start(self, memory: Memory, captions: int) -> State:
        return self.decoder.start(memory, captions)

    def step(self, tokens: Int[Tensor, "images captions"], state: State, memory: Memory) -> Step:
        step = self.decoder.step(self.order[tokens], state, memory)
        return Step(step.logits[..., self.order], step.state, self._placed(step.attention))

    def forward(
        self,
        grid: Float[Tensor, "images locations channels"],
        tokens: Int[Tensor, "images captions length"],
    ) -> TeacherForced:
        order = self.order.to(tokens.device)
        result: TeacherForced = self.decoder(grid, order[tokens])
        return replace(
            result,
            logits=result.logits[..., self.order],
            targets=self.order.to(result.targets.device)[result.targets],
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
    """An ensemble whose members read a grid each, those of the views of an image.

    The grids of an image are one after another: images x (members x locations) x channels.
    """

    def grids(self, grid: Float[Tensor, "images locations channels"]) -> Sequence[Tensor]:
        return grid.chunk(len(self.members), 1)
