"""ResNet-50 (He et al., 2016) up to its last stage: 7 x 7 locations of 2048 channels."""

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50

from captioning.models.encoders.base import GridEncoder
from captioning.support.weights import ImageNet


class ResNet50(GridEncoder):
    """The output of ``layer4``, before the average pooling."""

    name = "resnet50"
    channels = 2048
    stride = 32
    # The first weights, not V2: those come from a recipe with label smoothing, which is known to
    # make frozen features transfer worse (Kornblith et al., 2021).
    imagenet = ImageNet(url=ResNet50_Weights.IMAGENET1K_V1.url)

    def build(self) -> None:
        """Register everything of torchvision's model but its pooling and classifier."""
        whole = resnet50(weights=None)
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, getattr(whole, name))

    def map(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Return the output of ``layer4``."""
        for layer in self.children():  # registered in the order in which they run
            images = layer(images)
        return images

    def last_block(self) -> list[nn.Parameter]:
        """Return the parameters of ``layer4``; its BatchNorm statistics stay as they are."""
        return list(self.get_submodule("layer4").parameters())
