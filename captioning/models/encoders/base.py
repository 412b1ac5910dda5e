"""What every image encoder offers: an image becomes a grid of feature vectors."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from captioning.support.errors import CaptioningError
from captioning.support.weights import ImageNet, fingerprint, load_weights

Encoder = TypeVar("Encoder", bound="GridEncoder")  # beartype has no use for typing.Self here


@dataclass(frozen=True)
class Preprocessing:
    """From a picture of any size to the tensor that an encoder reads.

    Attributes:
        size: Height and width of the result, in pixels.
        resize: ``squash`` scales both sides to ``size`` and keeps the whole picture; ``crop``
            scales the shorter side to 256/224 of ``size`` and cuts the middle out, as Xu et al.
        mean: Of each channel (red, green, blue), for pixels in [0, 1].
        std: Likewise.
    """

    size: int = 224
    resize: str = "squash"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.resize not in ("squash", "crop"):
            raise CaptioningError(
                f"encoder.resize={self.resize} is unknown: choose squash or crop."
            )

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 size size"]:
        """Resize an RGB picture and normalise each channel."""
        pixels = torch.from_numpy(np.array(self._resized(image))).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.resize == "squash":
            box = None
        else:
            # Scaling the crop's own box is the same as scaling all and cutting, in one step.
            side = min(image.size) * 224 / 256
            left, top = ((length - side) / 2 for length in image.size)
            box = (left, top, left + side, top + side)
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)


class GridEncoder(nn.Module, ABC):
    """A convolutional network up to its last map, read as a row-major list of locations.

    A subclass states the class attributes and the three abstract methods; ``build`` names its
    layers as torchvision does, so that torchvision's state dicts fit. The network always stays in
    evaluation mode: its BatchNorms keep the statistics they were trained with.

    Attributes:
        name: Short name, also in the name of the feature store's folder.
        channels: Length of the vector at each location.
        stride: Pixels between two neighbouring locations.
        imagenet: Where the ImageNet weights are found.
        preprocessing: What to do to a picture before ``forward``.
        grid_size: Rows and columns of the grid.
        locations: Their product.
        weights_source: For people: where the loaded weights came from.
        fingerprint: SHA-256 over the name and all tensors as they were loaded. Equal weights have
            equal fingerprints, from whichever source they came.
    """

    name: ClassVar[str]
    channels: ClassVar[int]
    stride: ClassVar[int]
    imagenet: ClassVar[ImageNet | None] = None

    def __init__(
        self,
        weights: str = "imagenet",
        image_size: int = 224,
        resize: str = "squash",
        trainable: bool = False,
    ) -> None:
        """Build the network and load its weights.

        Args:
            weights: ``imagenet``, ``random`` (the same each time), or the path of a state dict.
            image_size: Side of the square input in pixels, a multiple of ``stride``.
            resize: ``squash`` or ``crop``; see :class:`Preprocessing`.
            trainable: Whether the last block learns; everything before it is always frozen.

        Raises:
            CaptioningError: a value is not among the valid ones, or the weights cannot be had.
        """
        super().__init__()
        if image_size < self.stride or image_size % self.stride:
            raise CaptioningError(
                f"encoder.image_size={image_size} does not fit {self.name}: "
                f"give a multiple of {self.stride}, such as 224."
            )
        self.preprocessing = Preprocessing(size=image_size, resize=resize)
        self.grid_size = (image_size // self.stride, image_size // self.stride)
        self.locations = self.grid_size[0] * self.grid_size[1]

        with torch.device("meta"):  # shapes alone: every value is loaded right below
            self.build()
        state, self.weights_source = load_weights(
            weights, name=self.name, expected=self.state_dict(), imagenet=self.imagenet
        )
        self.load_state_dict(state, assign=True)
        self.fingerprint = fingerprint(self.name, state)
        self.requires_grad_(False)
        for parameter in self.last_block():
            parameter.requires_grad_(trainable)
        self.train(False)

    @abstractmethod
    def build(self) -> None:
        """Register the layers, under the names of torchvision's model."""

    @abstractmethod
    def map(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Return the last map of the network."""

    @abstractmethod
    def last_block(self) -> list[nn.Parameter]:
        """Return what ``trainable`` unfreezes: the parameters of the last convolution block."""

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch locations channels"]:
        """Encode preprocessed images; location ``r * columns + c`` is row r, column c."""
        grid: Tensor = self.map(images).flatten(2).transpose(1, 2)
        return grid

    def train(self: Encoder, mode: bool = True) -> Encoder:
        """Stay in evaluation mode, whatever ``mode`` is."""
        del mode
        return super().train(False)
