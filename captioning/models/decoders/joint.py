"""An ensemble whose members read the grids of different encoders."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from captioning.models.decoders.base import Decoder
from captioning.models.decoders.ensemble import Ensemble
from captioning.models.encoders.joint import GridPart


class JointEnsemble(Ensemble):
    """An ensemble whose members read their own part of the grid of a joint encoder.

    Args:
        members: decoders of one vocabulary, with attention over one grid; see
            :class:`captioning.models.decoders.views.ViewDecoder`.
        parts: the part of the joint grid that each member reads; see
            :class:`captioning.models.encoders.joint.JointEncoder`.
    """

    def __init__(self, members: Sequence[Decoder], parts: Sequence[GridPart]) -> None:
        super().__init__(members)
        self.parts = tuple(parts)

    def grids(self, grid: Float[Tensor, "images locations channels"]) -> Sequence[Tensor]:
        return [grid[:, part.first : part.end, : part.channels].contiguous() for part in self.parts]
