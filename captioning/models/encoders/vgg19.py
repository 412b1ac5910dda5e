"""VGG19 (Simonyan and Zisserman, 2015) up to conv5_4: 14 x 14 locations of 512 channels."""

from captioning.models.encoders.torchvision import TorchvisionEncoder


class VGG19(TorchvisionEncoder):
    """The encoder of Xu et al.'s released code: conv5_4 after its ReLU, before the last pooling."""

    short_name = "vgg19"

    def __init__(
        self,
        weights: str = "imagenet",
        image_size: int = 224,
        resize: str = "squash",
        trainable: bool = False,
        pool: int = False,
    ) -> None:
        """Build the network and load its weights; the arguments are those of the base class."""
        super().__init__("vgg19", "features.35", weights, image_size, resize, trainable, pool=pool)
