"""Encoders against torchvision's own models, and the resizing against arithmetic by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from captioning.data.features.meta import store_folder
from captioning.models.encoders.base import GridEncoder, Preprocessing
from captioning.models.encoders.resnet50 import ResNet50
from captioning.models.encoders.torchvision import TorchvisionEncoder, _normalisation
from captioning.models.encoders.vgg16 import VGG16
from captioning.models.encoders.vgg19 import VGG19
from captioning.support.build import build
from captioning.support.errors import CaptioningError
from captioning.testing import check_encoder


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


# Families of networks, each small: the layer, its channels and stride, and where the last block
# begins. Channels and strides are those of the published architectures.
BACKBONES = [
    ("resnet18", "layer4", 512, 32, "layer4.0."),
    ("resnet18", "layer3", 256, 16, "layer3.0."),
    ("vgg11_bn", "features.27", 512, 16, "features.22."),
    ("mobilenet_v3_small", "features", 576, 32, "features.9."),
    ("efficientnet_b0", "features.8", 1280, 32, "features.6."),
    ("convnext_tiny", "features.7", 768, 32, "features.6."),
    ("swin_t", "permute", 768, 32, "features.6."),
    ("regnet_y_400mf", "trunk_output", 440, 32, "trunk_output.block4."),
    ("inception_v3", "Mixed_6e", 768, 16, "Mixed_6a."),
]


@pytest.mark.parametrize("make", [VGG16, ResNet50])
@pytest.mark.parametrize("trainable", [False, True])
def test_our_encoders_keep_to_the_contract(make: type[GridEncoder], trainable: bool) -> None:
    size = 64 if make is VGG16 else 128
    check_encoder(make(weights="random", image_size=size, trainable=trainable))


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "efficientnet_b0", "convnext_tiny",
                                      "swin_t"])  # fmt: skip
def test_backbones_of_several_families_keep_to_the_contract(backbone: str) -> None:
    layer = next(row[1] for row in BACKBONES if row[0] == backbone)
    check_encoder(
        TorchvisionEncoder(backbone, layer, weights="random", image_size=128, trainable=True)
    )


@pytest.fixture(scope="module", params=BACKBONES, ids=lambda row: f"{row[0]}-{row[1]}")
def backbone(request: pytest.FixtureRequest) -> tuple[TorchvisionEncoder, Any]:
    """An encoder, made once for all tests, and its row of ``BACKBONES``."""
    name, layer, *_ = request.param
    made = TorchvisionEncoder(name, layer, weights="random", image_size=128, trainable=True)
    return made, request.param


def test_channels_stride_and_last_block_are_found_from_the_network(
    backbone: tuple[TorchvisionEncoder, Any],
) -> None:
    encoder, (name, layer, channels, stride, block) = backbone
    assert (encoder.channels, encoder.stride) == (channels, stride)
    assert encoder.name == f"{name}-{layer}"
    names = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    assert names[0].startswith(block)
    assert names == [name for name, _ in encoder.named_parameters()][-len(names) :]


def test_any_backbones_grid_is_the_output_of_torchvisions_own_layer(
    backbone: tuple[TorchvisionEncoder, Any],
) -> None:
    encoder, (name, layer, *_) = backbone
    options = {"init_weights": False} if name == "inception_v3" else {}
    # Its own weights need not be drawn, since they are replaced; RegNet needs values to be made.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = torchvision.models.get_model(name, weights=None, **options)
    model.to_empty(device="cpu").eval()
    assert not model.load_state_dict(encoder.state_dict(), strict=False).unexpected_keys
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    caught: list[torch.Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda *call: caught.append(call[2].clone()))
    with torch.no_grad():
        model(images)
        grid = encoder(images)
    torch.testing.assert_close(grid[0].T.reshape(caught[0][0].shape), caught[0][0])


def test_a_whole_model_saved_from_torchvision_can_be_loaded(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = torchvision.models.get_model("mobilenet_v3_small", weights=None)
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    path = str(tmp_path / "whole.pth")
    encoder = TorchvisionEncoder("mobilenet_v3_small", "features.3", path, image_size=32)
    assert encoder.state_dict()["features.0.0.weight"].equal(model.features[0][0].weight)
    assert not any(key.startswith("features.4") for key in encoder.state_dict())


def test_an_encoder_rebuilt_from_its_settings_and_state_dict_is_the_same(tmp_path: Path) -> None:
    # The weights differ from `random`, so that a state dict that is not loaded is noticed.
    torch.manual_seed(3)
    model = torchvision.models.get_model("resnet18", weights=None)
    torch.save(model.state_dict(), tmp_path / "other.pth")
    spec = {
        "_target_": "captioning.models.encoders.torchvision.TorchvisionEncoder",
        "name": "resnet18", "image_size": 32, "weights": str(tmp_path / "other.pth"),
    }  # fmt: skip
    encoder = build(spec, GridEncoder, "encoder")
    again = build({**spec, "weights": "random"}, GridEncoder, "encoder")
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert not again(images).allclose(encoder(images))
        again.load_state_dict(encoder.state_dict())
        assert again(images).equal(encoder(images))


def test_a_batch_of_one_has_the_gradients_that_it_has_among_others() -> None:
    # torch's BatchNorm misreads the strides of a single image's gradient.
    encoder = TorchvisionEncoder(
        "densenet121", "features", weights="random", image_size=64, trainable=True
    )
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    parameter = encoder.last_block()[0]
    (alone,) = torch.autograd.grad(encoder(images[:1])[0, 1].sum(), parameter)
    (among,) = torch.autograd.grad(encoder(images)[0, 1].sum(), parameter)
    torch.testing.assert_close(alone, among, rtol=1e-3, atol=1e-4 * float(among.abs().max()))


def test_mean_and_std_are_those_of_the_published_weights_unless_given() -> None:
    def make(name: str, layer: str, **given: tuple[float, float, float]) -> Preprocessing:
        encoder = TorchvisionEncoder(name, layer, weights="random", image_size=64, **given)
        return encoder.preprocessing

    assert make("resnet18", "layer1") == Preprocessing(size=64)
    assert make("googlenet", "conv1").std == (0.5, 0.5, 0.5)
    large = torchvision.models.EfficientNet_V2_L_Weights.IMAGENET1K_V1
    assert _normalisation("efficientnet_v2_l", large) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert make("resnet18", "layer1", mean=(0.1, 0.2, 0.3)).mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "resnet5"}, "name=resnet5.*resnet50"),
        ({"layer": "layer5"}, "layer=layer5.*no such layer.*layer4"),
        ({"layer": "avgpool"}, r"layer=avgpool.*2048 x 1 x 1.*layer4"),
        ({"layer": "fc"}, "layer=fc.*cannot be cut.*layer4"),
        ({"name": "vgg11", "layer": "avgpool"}, "layer=avgpool.*7 rows whatever"),
        ({"name": "swin_t", "layer": "features.7"}, "not a map.*permute"),
        ({"name": "vit_b_16", "layer": "encoder"}, "cannot be cut.*conv_proj"),
        ({"image_size": 100}, "image_size=100.*multiple of 32"),
        ({"layer": "maxpool", "trainable": True, "name": "vgg11"}, "no such layer"),
        ({"std": (0.0, 1.0, 1.0)}, "encoder.std"),
    ],
)
def test_a_wrong_backbone_is_told_with_what_there_is(
    options: dict[str, object], words: str
) -> None:
    with pytest.raises(CaptioningError, match=words):
        TorchvisionEncoder(**{"weights": "random", **options})


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


@pytest.mark.parametrize("pool", [2, 4])
def test_a_pooled_grid_is_the_mean_of_squares_of_locations(vgg16: VGG16, pool: int) -> None:
    pooled = VGG16(weights="random", image_size=64, pool=pool)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = vgg16(images).view(4, 4, 512)
        grid = pooled(images)
    side = 4 // pool
    assert (pooled.grid_size, pooled.locations) == ((side, side), side**2)
    assert pooled.stride == 16 * pool
    for row in range(side):
        for column in range(side):
            square = plain[row * pool : (row + 1) * pool, column * pool : (column + 1) * pool]
            torch.testing.assert_close(
                grid[0, row * side + column], square.mean((0, 1)), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("trainable", [False, True])
def test_a_pooled_encoder_keeps_to_the_contract(trainable: bool) -> None:
    check_encoder(VGG16(weights="random", image_size=128, trainable=trainable, pool=2))


def test_448_pixels_pooled_by_2_have_as_many_locations_as_224() -> None:
    large = VGG16(weights="random", image_size=448)
    pooled = VGG16(weights="random", image_size=448, pool=2)
    assert (large.grid_size, pooled.grid_size) == ((28, 28), (14, 14))
    assert ResNet50(weights="random", image_size=448).grid_size == (14, 14)
    unpadded = TorchvisionEncoder("inception_v3", "Mixed_6e", "random", 448, pool=2)
    assert unpadded.grid_size == (13, 13)  # of 26 x 26


def test_each_size_and_each_pool_has_a_feature_store_of_its_own(tmp_path: Path) -> None:
    encoders = [
        VGG16(weights="random", image_size=size, pool=pool)
        for size, pool in [(64, False), (64, 2), (64, 4), (128, False), (128, 2)]
    ]
    assert len({store_folder(tmp_path, encoder) for encoder in encoders}) == len(encoders)
    unpooled = VGG16(weights="random", image_size=64, pool=1)
    assert store_folder(tmp_path, unpooled) == store_folder(tmp_path, encoders[0])


@pytest.mark.parametrize("pool", [-2, 3])
def test_a_pool_that_leaves_a_remainder_is_told_with_those_that_fit(pool: int) -> None:
    with pytest.raises(CaptioningError, match=f"pool={pool} .*4 x 4.*choose among 1, 2, 4"):
        VGG16(weights="random", image_size=64, pool=pool)


class Patches(GridEncoder):
    """A linear layer on patches of 8 x 8 pixels, with one mistake of choice."""

    name = "patches"
    channels = 6
    stride = 8

    def __init__(self, mistake: str, trainable: bool = True) -> None:
        self.mistake = mistake
        super().__init__("random", image_size=32, trainable=trainable)
        if mistake == "fingerprint":
            self.fingerprint = "0" * 64
        if mistake == "name":
            self.name = "patches/8"
        if mistake == "channels":
            self.channels = 5
        if mistake == "frozen":
            self.conv.bias.requires_grad_(False)

    def build(self) -> None:
        self.conv = nn.Conv2d(3, 6, kernel_size=8, stride=8)

    def map(self, images: torch.Tensor) -> torch.Tensor:
        grid: torch.Tensor = self.conv(images)
        if self.mistake == "order":
            return grid.transpose(2, 3)
        if self.mistake == "flip":
            return grid.flip(3)
        if self.mistake == "batch":
            return grid - grid.mean(0)
        if self.mistake == "constant":
            return grid.detach()
        if self.mistake == "type":
            return grid.double()
        return grid

    def train(self, mode: bool = True) -> "Patches":
        return nn.Module.train(self, mode and self.mistake == "mode")

    def last_block(self) -> list[nn.Parameter]:
        return list(self.conv.parameters())


def test_an_encoder_without_a_mistake_passes_the_check() -> None:
    check_encoder(Patches("none"))
    check_encoder(Patches("none", trainable=False))


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("fingerprint", "fingerprint is not that"),
        ("name", "name='patches/8' does not suit"),
        ("channels", r"\(3, 16, 6\), not \(3, 16, 5\)"),
        ("frozen", r"conv\.bias is not trainable, but last_block"),
        ("order", "row 0"),
        ("flip", "row 0"),
        ("batch", "other images of its batch"),
        ("constant", "no gradient with respect to the pixels"),
        ("type", "float64"),
        ("mode", "leaves evaluation mode"),
    ],
)
def test_the_check_tells_each_mistake(mistake: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_encoder(Patches(mistake))
