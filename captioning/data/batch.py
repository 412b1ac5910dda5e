"""What a training or evaluation step is given."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from captioning.data.views import ORIGINAL_ALONE


class Batch(NamedTuple):
    """Some images with their captions.

    Attributes:
        images: What the model sees: grids (B x P x C, half precision) from the feature store, or
            preprocessed pixels (B x 3 x H x W) if the encoder is trained. With V ``views``, the
            grids of an image are one after another (B x VP x C), and pixels are B x V x 3 x H x W.
        tokens: B x K x T, the token ids of each image's captions, in the CPU's memory. Captions are
            in descending order of length, ``<start>`` ... ``<end>``, padded with 0; an image with
            fewer than K captions has rows of padding.
        ids: The ids of the images.
        views: The names of the views of each image that are decoded together. In training, where
            each image has the view that was drawn for it, it is not used.
    """

    images: Tensor
    tokens: Tensor
    ids: list[str]
    views: tuple[str, ...] = ORIGINAL_ALONE

    @property
    def grid(self) -> Float[Tensor, "batch locations channels"]:
        """The images as grids, B x P x C.

        Raises:
            RuntimeError: the images are pixels, which the encoder has to turn into grids first.
        """
        if self.images.dim() != 3:
            raise RuntimeError(
                f"The images of this batch are pixels of shape {tuple(self.images.shape)}: "
                "replace them by encoder(batch.images) before asking for the grid."
            )
        return self.images
