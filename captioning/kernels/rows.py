"""Which captions of which images the rows of a tensor belong to."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


class Rows(NamedTuple):
    """The captions of a batch that a tensor has rows for, in any order.

    Attributes:
        index: of each row, image x captions + caption; no two are equal.
        images: images of the batch (B).
        captions: captions that an image can have (K).
    """

    index: Int[Tensor, " rows"]  # type: ignore[assignment]  # hides the method of tuples
    images: int
    captions: int

    @classmethod
    def all(cls, images: int, captions: int, device: torch.device) -> "Rows":
        """Every caption of every image, image after image."""
        return cls(torch.arange(images * captions, device=device), images, captions)

    @property
    def image(self) -> Int[Tensor, " rows"]:
        """The image of each row."""
        return self.index // self.captions

    def head(self, count: int) -> "Rows":
        """The first ``count`` rows."""
        return self._replace(index=self.index[:count])

    def scatter(self, rows: Float[Tensor, "rows size"]) -> Float[Tensor, "images captions size"]:
        """Rows as images x captions; captions that have no row are zero."""
        flat = rows.new_zeros(self.images * self.captions, rows.shape[1])
        return flat.index_copy(0, self.index, rows).view(self.images, self.captions, rows.shape[1])

    def gather(self, tensor: Shaped[Tensor, "images captions size"]) -> Shaped[Tensor, "rows size"]:
        """The rows of a tensor of images x captions."""
        return tensor.flatten(0, 1)[self.index]
