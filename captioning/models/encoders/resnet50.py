"""ResNet-50 (He et al., 2016) up to its last stage: 7 x 7 locations of 2048 channels."""

from captioning.models.encoders.torchvision import TorchvisionEncoder


class ResNet50(TorchvisionEncoder):
    """The output of ``layer4``, before the average pooling."""

    short_name = "resnet50"

    def __init__(
        self,
        weights: str = "imagenet",
        image_size: int = 224,
        resize: str = "squash",
        trainable: bool = False,
        pool: int = False,
    ) -> None:
        """Build the network and load its weights; the arguments are those of the base class."""
        super().__init__("resnet50", "layer4", weights, image_size, resize, trainable, pool=pool)
