"""Grids of several encoders that are read together."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from captioning.data.features.joint import JointStore, open_store
from captioning.data.features.store import build_store
from captioning.models.encoders.base import GridEncoder
from captioning.models.encoders.joint import JointEncoder
from captioning.models.encoders.vgg16 import VGG16


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = [folder / f"{n}.png" for n in range(5)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    return [(path.name, path) for path in paths]


def encoders(trainable: bool = False) -> list[GridEncoder]:
    coarse = tiny.Encoder(trainable=trainable)
    return [VGG16(weights="random", image_size=32), coarse, tiny.Encoder(image_size=64)]


def test_the_joint_grid_is_what_the_encoders_compute(
    tmp_path: Path, images: list[tuple[str, Path]]
) -> None:
    joint = JointEncoder(encoders())
    store = open_store(tmp_path, joint, images[:3], precision="fp32")
    assert isinstance(store, JointStore)
    store.extend(open_store(tmp_path, joint, images[3:], precision="fp32"))  # type: ignore[arg-type]
    pictures = [Image.open(path).convert("RGB") for _, path in images]
    with torch.no_grad():
        expected = joint(torch.stack([joint.preprocessing(picture) for picture in pictures]))
    grids = store.gather([name for name, _ in images])
    assert grids.shape == (5, 4 + 49 + 225, 512)
    torch.testing.assert_close(grids.float(), expected, atol=1e-3, rtol=1e-3)
    for part, encoder in zip(joint.parts, encoders(), strict=True):
        own = build_store(tmp_path, encoder, images).gather(["1.png", "4.png"])
        of_joint = grids[[1, 4], part.first : part.end, : part.channels]
        assert torch.equal(of_joint, own)
    assert store.nbytes == 5 * (4 * 512 + 49 * 128 + 225 * 128) * 2
    assert "1.png" in store
    assert "5.png" not in store


def test_grids_that_an_encoder_has_stored_already_are_not_computed_again(
    tmp_path: Path, images: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for encoder in encoders():
        build_store(tmp_path, encoder, images)

    def fail(*_: object) -> None:
        raise AssertionError("an encoder was run")

    monkeypatch.setattr(GridEncoder, "forward", fail)
    assert "4.png" in open_store(tmp_path, JointEncoder(encoders()), images)


def test_an_encoder_that_was_trained_does_not_read_the_grids_of_its_start(
    tmp_path: Path, images: list[tuple[str, Path]]
) -> None:
    before = open_store(tmp_path, JointEncoder(encoders()), images).gather(["0.png"])
    members = encoders(trainable=True)
    with torch.no_grad():
        next(p for p in members[1].parameters() if p.requires_grad).add_(1)
    joint = JointEncoder(members)
    after = open_store(tmp_path, joint, images).gather(["0.png"])
    changed = (before != after).flatten(2).any(2)[0]
    part = joint.parts[1]
    assert changed[part.first : part.end].any()
    assert not changed[: part.first].any()
    assert not changed[part.end :].any()
