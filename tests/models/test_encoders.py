"""Encoders against torchvision's own models, and the resizing against arithmetic by hand."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from captioning.models.encoders.base import GridEncoder, Preprocessing
from captioning.models.encoders.resnet50 import ResNet50
from captioning.models.encoders.vgg16 import VGG16
from captioning.models.encoders.vgg19 import VGG19
from captioning.support.errors import CaptioningError


@pytest.fixture(scope="module")
def vgg16() -> VGG16:
    return VGG16(weights="random", image_size=64)


def torchvision_map(name: str, encoder: GridEncoder, images: torch.Tensor) -> torch.Tensor:
    """The wanted map out of torchvision's whole model, caught by a hook on the layer's name."""
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(weights=None)
    model.to_empty(device="cpu").eval()
    missing = model.load_state_dict(encoder.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith(("classifier", "fc")) for key in missing.missing_keys)
    layer = {
        "vgg16": lambda: model.features[29],  # the ReLU of conv5_3
        "vgg19": lambda: model.features[35],  # the ReLU of conv5_4
        "resnet50": lambda: model.layer4,
    }[name]()
    caught: list[torch.Tensor] = []
    layer.register_forward_hook(lambda *call: caught.append(call[2].clone()))
    body = model.features if hasattr(model, "features") else model
    body(images)
    return caught[0]


@pytest.mark.parametrize(
    ("make", "rows", "channels"), [(VGG16, 4, 512), (VGG19, 4, 512), (ResNet50, 2, 2048)]
)
def test_grid_is_torchvisions_map_in_row_major_order(
    make: type[GridEncoder], rows: int, channels: int
) -> None:
    encoder = make(weights="random", image_size=64)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        grid = encoder(images)
        expected = torchvision_map(encoder.name, encoder, images)
    assert grid.shape == (2, rows * rows, channels)
    assert (encoder.locations, encoder.grid_size) == (rows * rows, (rows, rows))
    assert grid.abs().sum() > 0
    for row in range(rows):
        for column in range(rows):
            torch.testing.assert_close(
                grid[:, row * rows + column], expected[:, :, row, column], rtol=1e-4, atol=1e-4
            )


def test_at_224_pixels_vgg_has_196_locations() -> None:
    encoder = VGG16(weights="random")
    assert (encoder.locations, encoder.channels, encoder.grid_size) == (196, 512, (14, 14))


@pytest.mark.parametrize(
    ("make", "first"),
    [(VGG16, "features.24."), (VGG19, "features.28."), (ResNet50, "layer4.")],
)
def test_trainable_unfreezes_the_last_block_alone(make: type[GridEncoder], first: str) -> None:
    frozen = make(weights="random", image_size=32)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    encoder = make(weights="random", image_size=32, trainable=True)
    names = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    assert names[0].startswith(first)
    position = [name for name, _ in encoder.named_parameters()].index(names[0])
    assert names == [name for name, _ in encoder.named_parameters()][position:]
    assert {id(p) for p in encoder.last_block()} == {
        id(p) for p in encoder.parameters() if p.requires_grad
    }


def test_a_training_step_moves_the_last_block_but_no_batch_norm_statistics() -> None:
    encoder = ResNet50(weights="random", image_size=32, trainable=True)
    encoder.train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=1e-4)
    encoder(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    changed = {key for key, value in encoder.state_dict().items() if not value.equal(before[key])}
    assert any("conv" in key for key in changed)
    assert all(key.startswith("layer4.") for key in changed)
    assert not any("running" in key for key in changed)
    assert not any(module.training for module in encoder.modules())


def test_random_weights_are_the_same_each_time(vgg16: VGG16) -> None:
    torch.manual_seed(5)
    again = VGG16(weights="random", image_size=64)
    assert again.fingerprint == vgg16.fingerprint
    assert "random" in again.weights_source
    assert VGG19(weights="random", image_size=64).fingerprint != vgg16.fingerprint


def test_no_layer_is_left_without_values(vgg16: VGG16) -> None:
    assert not any(tensor.is_meta for tensor in vgg16.state_dict().values())
    assert sum(p.numel() for p in vgg16.parameters()) == 14_714_688  # no classifier
    convolutions = [layer for layer in vgg16.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 13


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 100}, "image_size=100.*multiple of 16"),
        ({"image_size": 0}, "image_size=0"),
        ({"resize": "pad"}, "resize=pad.*squash or crop"),
        ({"weights": "imagenette"}, "imagenette.*imagenet, random"),
    ],
)
def test_wrong_options_are_told_in_one_sentence(options: dict[str, object], words: str) -> None:
    with pytest.raises(CaptioningError, match=words):
        VGG16(**{"weights": "random", **options})


def test_squash_keeps_the_whole_picture_and_normalises_each_channel() -> None:
    pixels = np.zeros((10, 20, 3), dtype=np.uint8)
    pixels[:, :10] = (255, 0, 51)  # left half
    tensor = Preprocessing(size=8)(Image.fromarray(pixels))
    assert tensor.shape == (3, 8, 8)
    left = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    right = [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    np.testing.assert_allclose(tensor[:, :, 0].T, [left] * 8, rtol=1e-5)
    np.testing.assert_allclose(tensor[:, :, 7].T, [right] * 8, rtol=1e-5)


def test_crop_takes_the_middle_of_the_short_side_at_256_of_224() -> None:
    # 512 x 256: the short side is 256 already, so the crop is 224 pixels of the very middle.
    values = np.arange(512 * 256, dtype=np.uint32).reshape(256, 512)
    pixels = np.stack([values % 251, values % 241, values % 239], axis=2).astype(np.uint8)
    tensor = Preprocessing(resize="crop", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))(
        Image.fromarray(pixels)
    )
    expected = pixels[16:240, 144:368].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(tensor, expected, atol=1e-6)


def test_a_size_already_right_is_not_resampled() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    tensor = Preprocessing(size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))(
        Image.fromarray(pixels)
    )
    np.testing.assert_allclose(tensor, pixels.transpose(2, 0, 1) / 255, atol=1e-6)
