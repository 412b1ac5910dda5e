"""The mapping from the rows of a tensor to the captions of images."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


class Rows(NamedTuple):
    """The captions of a batch for which a tensor has rows, in any order.

    Attributes:
        index: for each row, the index ``image * captions + caption`` of its caption; all are
            different.
        images: number of images in the batch (B).
        captions: number of captions that each image can have (K).
    """

    index: Int[Tensor, " rows"]  # type: ignore[assignment]  # hides the method of tuples
    images: int
    captions: int

    @classmethod
    def all(cls, images: int, captions: int, device: torch.device) -> "Rows":
        """Rows for every caption of every image, ordered by image."""
        return cls(torch.arange(images * captions, device=device), images, captions)

    @property
    def image(self) -> Int[Tensor, " rows"]:
        """The image of each row."""
        return self.index // self.captions

    def head(self, count: int) -> "Rows":
        """The first ``count`` rows."""
        return self._replace(index=self.index[:count])

    def scatter(self, rows: Float[Tensor, "rows size"]) -> Float[Tensor, "images captions size"]:
        """Arrange rows as images x captions; captions without a row are zero."""
        flat = rows.new_zeros(self.images * self.captions, rows.shape[1])
        return flat.index_copy(0, self.index, rows).view(self.images, self.captions, rows.shape[1])

    def gather(self, tensor: Shaped[Tensor, "images captions size"]) -> Shaped[Tensor, "rows size"]:
        """Select the rows from a tensor of images x captions."""
        return tensor.flatten(0, 1)[self.index]
