"""VGG19 (Simonyan and Zisserman, 2015) up to conv5_4: 14 x 14 locations of 512 channels."""

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import VGG19_Weights
from torchvision.models.vgg import cfgs, make_layers

from captioning.models.encoders.base import GridEncoder
from captioning.support.weights import ImageNet


class VGG19(GridEncoder):
    """The encoder of Xu et al.'s released code: conv5_4 after its ReLU, before the last pooling."""

    name = "vgg19"
    channels = 512
    stride = 16
    imagenet = ImageNet(url=VGG19_Weights.IMAGENET1K_V1.url)

    def build(self) -> None:
        """Register ``features`` without its last pooling."""
        self.features = make_layers(cfgs["E"][:-1], batch_norm=False)

    def map(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Return conv5_4 after ReLU."""
        result: Tensor = self.features(images)
        return result

    def last_block(self) -> list[nn.Parameter]:
        """Return conv5_1 to conv5_4."""
        return list(self.features[28:].parameters())
