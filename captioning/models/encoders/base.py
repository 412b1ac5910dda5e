"""The interface of image encoders, and the base class of those that are one network."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from captioning.support.errors import CaptioningError
from captioning.support.regions import WHOLE, Region
from captioning.support.state_dicts import State, fingerprint
from captioning.support.weights import ImageNet, load_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of red, green and blue over ImageNet's pictures, for pixels in [0, 1]."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of red, green and blue over ImageNet's pictures, for pixels in [0, 1]."""

Kind = TypeVar("Kind", bound="Encoder")  # beartype does not support typing.Self here


@dataclass(frozen=True)
class PicturePreprocessing(ABC):
    """Turns a picture of any size into the input tensor of an encoder.

    A subclass is a frozen dataclass. Its fields are a part of the feature store's key.
    """

    @property
    @abstractmethod
    def resize(self) -> str:
        """``squash`` or ``crop``; see :class:`Preprocessing`."""

    @abstractmethod
    def __call__(
        self, image: Image.Image, part: Region = WHOLE, *, mirrored: bool = False
    ) -> Float[Tensor, "3 height width"]:
        """The input tensor of an RGB picture.

        Args:
            image: The picture.
            part: The part that is seen; with ``crop``, a part of the centre crop.
            mirrored: Whether left and right are exchanged.
        """


@dataclass(frozen=True)
class Preprocessing(PicturePreprocessing):
    """The preprocessing of a network: resizes a picture and normalises each channel.

    Attributes:
        size: Height and width of the result, in pixels.
        resize: ``squash`` scales both sides to ``size`` and keeps the whole picture; ``crop``
            scales the shorter side to 256/224 of ``size`` and takes the centre crop, as Xu et al.
        mean: Mean of each channel (red, green, blue), for pixels in [0, 1].
        std: Standard deviation of each channel.
    """

    size: int = 224
    resize: str = "squash"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.resize not in ("squash", "crop"):
            raise CaptioningError(
                f"encoder.resize={self.resize} is unknown: choose squash or crop."
            )
        if not all(0 < value < math.inf for value in self.std):
            raise CaptioningError(f"encoder.std={list(self.std)}: give three positive numbers.")

    @property
    def resampling(self) -> Image.Resampling:
        """The interpolation between pixels when a picture is resized."""
        return Image.Resampling.BILINEAR

    def __call__(
        self, image: Image.Image, part: Region = WHOLE, *, mirrored: bool = False
    ) -> Float[Tensor, "3 size size"]:
        resized = self._resized(image, part)
        if mirrored:
            resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def _resized(self, image: Image.Image, part: Region) -> Image.Image:
        # Resizing a box of the picture is the same as resizing the picture and then cropping it.
        left, top, width, height = 0.0, 0.0, float(image.width), float(image.height)
        if self.resize == "crop":
            width = height = min(image.size) * 224 / 256
            left, top = ((length - width) / 2 for length in image.size)
        box = (
            left + part[0] * width,
            top + part[1] * height,
            left + part[2] * width,
            top + part[3] * height,
        )
        return image.resize((self.size, self.size), self.resampling, box=box)


class Encoder(nn.Module, ABC):
    """Turns preprocessed images into grids. It always stays in evaluation mode.

    Attributes:
        name: Short name; it is part of the name of the feature store's folder.
        channels: Length of the vector at each location.
        preprocessing: The preprocessing of pictures before ``forward``.
        grid_size: Rows and columns of the grid on which attention is drawn.
        locations: Number of locations of the grid.
        weights: What was asked for: ``imagenet``, ``pretrained``, ``random`` or the path of a file.
        weights_source: A description of where the weights came from.
        fingerprint: SHA-256 that depends on the weights, not on their source.
    """

    name: str
    channels: int
    preprocessing: PicturePreprocessing
    grid_size: tuple[int, int]
    locations: int
    weights: str
    weights_source: str
    fingerprint: str

    @abstractmethod
    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch locations channels"]:
        """Encode preprocessed images."""

    def train(self: Kind, mode: bool = True) -> Kind:
        """Stay in evaluation mode, whatever ``mode`` is."""
        del mode
        return super().train(False)


class GridEncoder(Encoder):
    """A network up to its last feature map, which is returned as a row-major list of locations.

    A subclass defines ``build``, ``map`` and ``last_block``. It has ``name``, ``channels`` and
    ``stride`` either as class attributes, or as instance attributes, which ``build`` may set.
    Layers with torchvision's names can load torchvision's state dicts. BatchNorm keeps the
    statistics of its pretraining, as the network always stays in evaluation mode.
    :func:`captioning.testing.check_encoder` checks an encoder of your own.

    Attributes:
        stride: Distance of neighbouring locations, in pixels; pooling multiplies it.
        pool: The grid is averaged over squares of ``pool`` x ``pool`` locations; 1 if it is not.
        imagenet: The sources of the ImageNet weights; None if there are none.
        unused_weights: Prefixes of the names of tensors that a file of weights may contain although
            the encoder does not use them.
        preprocessing: The preprocessing of pictures before ``forward``: size, resize, mean and std.
        grid_size: Rows and columns of the grid.
        locations: Number of locations of the grid, rows x columns.
        fingerprint: SHA-256 over the name and all tensors after loading. It depends on the weights,
            not on their source.
    """

    preprocessing: Preprocessing
    stride: int
    pool: int = 1
    imagenet: ImageNet | None = None
    unused_weights: tuple[str, ...] = ("classifier.", "fc.")  # the heads of VGG and of ResNet

    def __init__(
        self,
        weights: str = "imagenet",
        image_size: int = 224,
        resize: str = "squash",
        trainable: bool = False,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        pool: int = False,
    ) -> None:
        """Build the network and load its weights.

        Args:
            weights: ``imagenet``, ``random`` (from a fixed seed), or the path of a state dict.
            image_size: Side of the square input in pixels, a multiple of the network's stride.
            resize: ``squash`` or ``crop``; see :class:`Preprocessing`.
            trainable: Whether the last block is trained; everything before it is always frozen.
            mean: Mean of red, green and blue, for pixels in [0, 1].
            std: Standard deviation of red, green and blue.
            pool: Average the network's map over squares of ``pool`` x ``pool`` locations, which
                have to fit into it without a remainder. With 2, VGG16's map of a picture of 448
                pixels has 14 x 14 locations, as many as that of 224 pixels. False for no pooling.

        Raises:
            CaptioningError: a value is not among the valid ones, or the weights are not available.
        """
        super().__init__()
        self.weights = weights
        self.preprocessing = Preprocessing(image_size, resize, mean, std)
        with torch.device("meta"):  # tensors without values, which are loaded below
            self.build()
        if image_size < self.stride or image_size % self.stride:
            raise CaptioningError(
                f"encoder.image_size={image_size} does not fit {self.name}: "
                f"give a multiple of {self.stride}, such as {-(-224 // self.stride) * self.stride}."
            )
        rows, columns = self.measure(image_size)
        self.pool = pool or 1
        if self.pool < 1 or rows % self.pool or columns % self.pool:
            fitting = [str(n) for n in range(1, rows + 1) if not (rows % n or columns % n)]
            raise CaptioningError(
                f"encoder.pool={pool} does not fit {self.name}, whose map has {rows} x {columns} "
                f"locations: choose among {', '.join(fitting)}."
            )
        self.stride *= self.pool
        self.grid_size = rows // self.pool, columns // self.pool
        self.locations = self.grid_size[0] * self.grid_size[1]

        state, self.weights_source = self.find_weights(weights)
        self.load_state_dict(state, assign=True)
        self.fingerprint = fingerprint(self.name, state)
        self.requires_grad_(False)
        last_block = self.last_block() if trainable else []
        if trainable and not last_block:
            raise CaptioningError(f"encoder.trainable=true: {self.name} has nothing to train.")
        for parameter in last_block:
            parameter.requires_grad_()
        self.train(False)

    @abstractmethod
    def build(self) -> None:
        """Register the layers; called on torch's meta device, on which tensors have no values."""

    @abstractmethod
    def map(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Return the last map of the network."""

    @abstractmethod
    def last_block(self) -> list[nn.Parameter]:
        """Return what ``trainable`` unfreezes: the parameters of the last convolution block."""

    def measure(self, image_size: int) -> tuple[int, int]:
        """Return the rows and columns of the map of a picture of ``image_size`` pixels."""
        return image_size // self.stride, image_size // self.stride

    def find_weights(self, weights: str) -> tuple[State, str]:
        """Return the state dict that ``weights`` stands for, and a description of its source.

        Raises:
            CaptioningError: the weights are not available, or do not fit.
        """
        return load_weights(
            weights,
            name=self.name,
            expected=self.state_dict(),
            imagenet=self.imagenet,
            unused=self.unused_weights,
        )

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch locations channels"]:
        """Encode preprocessed images; location ``r * columns + c`` is row r, column c."""
        last_map = self.map(images)
        if self.pool > 1:
            last_map = nn.functional.avg_pool2d(last_map, self.pool)
        if last_map.requires_grad:
            # Without this, torch's BatchNorm on the CPU gives wrong gradients in evaluation mode
            # for a batch of one image: it misreads the strides that `transpose` leaves behind.
            last_map.register_hook(  # type: ignore[no-untyped-call]
                lambda grad: None if grad is None else grad.contiguous()
            )
        grid: Tensor = last_map.flatten(2).transpose(1, 2)
        return grid
