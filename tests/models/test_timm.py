"""Networks of timm against timm's own outputs, features and transforms."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captioning.models.encoders.timm import TimmEncoder
from captioning.support.errors import CaptioningError
from captioning.testing import check_encoder

# Networks, each small: the layer, the size of pictures, channels, stride, and the options for timm.
BACKBONES = [
    ("resnet18", None, 128, 512, 32, {}),
    ("resnet18", "layer3", 64, 256, 16, {}),
    ("tf_efficientnet_lite0", None, 128, 1280, 32, {}),
    ("tf_efficientnet_lite0", "blocks.4", 64, 112, 16, {}),
    ("convnext_atto", None, 128, 320, 32, {}),
    ("swin_tiny_patch4_window7_224", None, 128, 768, 32, {"img_size": 128}),
    ("vit_tiny_patch16_224", None, 64, 192, 16, {"img_size": 64}),
    ("vit_tiny_patch16_224", "blocks.2", 64, 192, 16, {"img_size": 64}),
    ("vit_small_patch14_reg4_dinov2", "blocks.1", 56, 384, 14, {"img_size": 56}),
    ("vit_xsmall_patch16_clip_224", "blocks.0", 64, 256, 16, {"img_size": 64}),
]


@pytest.fixture
def timm() -> Any:
    return pytest.importorskip("timm")


def pictures(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "layer", "size", "channels", "stride", "options"),
    BACKBONES,
    ids=[f"{row[0]}-{row[1]}" for row in BACKBONES],
)
def test_the_grid_is_what_timm_computes(
    timm: Any, name: str, layer: str | None, size: int, channels: int, stride: int,
    options: dict[str, int],
) -> None:  # fmt: skip
    encoder = TimmEncoder(name, layer, weights="random", image_size=size)
    side = size // stride
    assert (encoder.channels, encoder.stride, encoder.grid_size) == (channels, stride, (side, side))

    model = timm.create_model(name, **options).eval()  # with its classifier
    state = {key.removeprefix("network.model."): v for key, v in encoder.state_dict().items()}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    images = pictures(size)
    with torch.no_grad():
        grid = encoder(images)
        if layer is None:
            expected = model.forward_features(images)
        else:
            (index,) = [n for n, info in enumerate(model.feature_info) if info["module"] == layer]
            features = timm.create_model(
                name, features_only=True, out_indices=(index,), **options
            ).eval()
            nested = any(key.startswith("model.") for key in features.state_dict())
            own = {f"model.{key}" if nested else key: value for key, value in state.items()}
            assert not features.load_state_dict(own, strict=False).unexpected_keys
            (expected,) = features(images)
    if expected.dim() == 3:  # class and register tokens, and then the patches
        expected = expected[:, -(side**2) :]
        torch.testing.assert_close(grid, expected)
        return
    if expected.shape[1] != channels:
        expected = expected.permute(0, 3, 1, 2)
    torch.testing.assert_close(grid.transpose(1, 2).unflatten(2, (side, side)), expected)


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [("resnet18", "layer3", 64), ("vit_tiny_patch16_224", None, 64),
     ("convnext_atto", None, 128)],
)  # fmt: skip
def test_backbones_of_several_families_keep_to_the_contract(
    timm: Any, name: str, layer: str | None, size: int
) -> None:
    encoder = TimmEncoder(name, layer, weights="random", image_size=size, trainable=True)
    assert encoder.name == f"timm-{name}" + (f"-{layer}" if layer else "")
    check_encoder(encoder)


def test_only_the_block_of_the_grid_is_trained(timm: Any) -> None:
    encoder = TimmEncoder("vit_tiny_patch16_224", None, "random", 64, trainable=True)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in encoder.named_parameters() if ".blocks.11." in n}


def test_layers_after_the_grid_are_left_out(timm: Any) -> None:
    names = TimmEncoder("vit_tiny_patch16_224", "blocks.2", "random", 64).state_dict()
    assert any(".blocks.2." in name for name in names)
    assert not any(".blocks.3." in name or "head" in name for name in names)


def test_pictures_are_preprocessed_as_by_timm(timm: Any) -> None:
    encoder = TimmEncoder("vit_tiny_patch16_224", weights="random", image_size=None)
    config = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(
        "vit_tiny_patch16_224").to_dict())  # fmt: skip
    transform = timm.data.create_transform(**{**config, "crop_pct": 1.0, "crop_mode": "squash"})
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    torch.testing.assert_close(encoder.preprocessing(image), transform(image))
    assert encoder.preprocessing.std == (0.5, 0.5, 0.5)  # not ImageNet's
    given = TimmEncoder("vit_tiny_patch16_224", weights="random", image_size=64,
                        mean=(0.1, 0.2, 0.3)).preprocessing  # fmt: skip
    assert given.mean == (0.1, 0.2, 0.3)


def test_random_weights_are_the_same_each_time_and_touch_no_other_random_number(timm: Any) -> None:
    torch.manual_seed(5)
    first = TimmEncoder("resnet18", "layer1", "random", 64)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1).equal(drawn)
    assert TimmEncoder("resnet18", "layer1", "random", 64).fingerprint == first.fingerprint


def test_a_file_is_read_by_timms_conversion_for_any_size_of_pictures(
    timm: Any, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(3)
    whole = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    torch.save({"model": whole.state_dict()}, tmp_path / "whole.pth")
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    expected = whole.forward_features(pictures(64))[:, 1:]
    for file in ("whole.pth", "whole.safetensors"):
        encoder = TimmEncoder("vit_tiny_patch16_224", None, str(tmp_path / file), 64)
        torch.testing.assert_close(encoder(pictures(64)), expected)
        assert encoder.weights_source == str(tmp_path / file)
    # The position embeddings of 4 x 4 patches are interpolated to 6 x 6.
    larger = TimmEncoder("vit_tiny_patch16_224", None, str(tmp_path / "whole.pth"), 96)
    assert larger.state_dict()["network.model.pos_embed"].shape == (1, 37, 192)
    assert larger.state_dict()["network.model.blocks.3.attn.qkv.weight"].equal(
        whole.state_dict()["blocks.3.attn.qkv.weight"]
    )


def test_a_file_of_another_network_is_told_by_name(timm: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    state = timm.create_model("resnet18").state_dict()
    del state["layer2.0.conv1.weight"]
    torch.save(state, path)
    with pytest.raises(CaptioningError, match=r"file.*resnet18: it lacks layer2\.0\.conv1"):
        TimmEncoder("resnet18", None, str(path), 64)
    for name in ("resnet34", "vit_tiny_patch16_224"):
        with pytest.raises(CaptioningError, match=f"another network than timm's {name}") as caught:
            TimmEncoder(name, None, str(path), 64)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"nothing")
    with pytest.raises(CaptioningError, match=r"file\.pth cannot be read"):
        TimmEncoder("resnet18", None, str(path), 64)


def test_pretrained_weights_come_from_timm_and_missing_ones_are_told(
    timm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model

    def cached(name: str, pretrained: bool, **options: Any) -> torch.nn.Module:
        model: torch.nn.Module = create(name, pretrained=False, **options)
        if pretrained:
            torch.nn.init.constant_(model.conv1.weight, 0.5)
        return model

    monkeypatch.setattr(timm, "create_model", cached)
    encoder = TimmEncoder("resnet18.a1_in1k", "layer1", "pretrained", 64)
    assert encoder.state_dict()["network.model.conv1.weight"].eq(0.5).all()
    assert encoder.weights_source == "timm, timm/resnet18.a1_in1k"

    def offline(name: str, pretrained: bool, **options: Any) -> torch.nn.Module:
        if pretrained:
            raise OSError("Cannot reach the hub.\nCheck your network.")
        return cached(name, pretrained, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        CaptioningError, match=r"\(Cannot reach the hub\).*encoder\.weights"
    ) as found:
        TimmEncoder("resnet18.a1_in1k", "layer1", "pretrained", 64)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "resnet1818"}, "name=resnet1818: timm has no such.*resnet18"),
        ({"name": "resnet18.a9_in1k"}, "timm has no such.*resnet18.a1_in1k"),
        ({"layer": "layer9"}, "layer=layer9: no such layer; choose among.*layer4"),
        ({"name": "volo_d1_224"}, "not a map of locations; choose among.*network.4"),
        ({"image_size": 100}, "image_size=100.*multiple of 32"),
        ({"name": "vit_tiny_patch16_224", "image_size": 100}, "image_size=100.*multiple of 16"),
        ({"name": "vit_tiny_patch16_224", "image_size": 8}, "image_size=8 does not fit"),
        ({"weights": "imagenet"}, "imagenet is neither a file nor one of: pretrained, random"),
        ({"pool": 2, "image_size": 224}, r"pool=2.*7 x 7 locations: choose among 1, 7"),
    ],
)
def test_a_wrong_setting_is_told_with_what_there_is(
    timm: Any, options: dict[str, object], words: str
) -> None:
    with pytest.raises(CaptioningError, match=words):
        TimmEncoder(**{"name": "resnet18", "weights": "random", **options})


def test_without_timm_one_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "timm":
            raise ImportError("No module named 'timm'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CaptioningError, match=r'encoder=timm needs .*pip install "timm') as caught:
        TimmEncoder("resnet18", weights="random")
    assert "\n" not in str(caught.value)
