"""Grids of several encoders that are read together."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from captioning.data.features.building import build_store
from captioning.data.features.joint import JointStore, open_store
from captioning.data.features.meta import store_folder
from captioning.data.views import find_views
from captioning.models.encoders.base import GridEncoder
from captioning.models.encoders.joint import JointEncoder
from captioning.models.encoders.vgg16 import VGG16
from captioning.support.errors import CaptioningError


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


def light() -> list[GridEncoder]:
    """Two that are built and run in no time."""
    return [tiny.Encoder(), tiny.Encoder(image_size=64)]


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


def test_each_encoder_sees_the_view_that_is_asked_for(
    tmp_path: Path, images: list[tuple[str, Path]]
) -> None:
    """As pixels, and in the store of that view."""
    joint = JointEncoder(light())
    picture = Image.open(images[0][1]).convert("RGB")
    for view in find_views(("original", "flip", "crop_top_left", "crop_top_left_flip")):
        expected = [view.pixels(picture, member.preprocessing) for member in joint.members]
        found = view.pixels(picture, joint.preprocessing)
        assert torch.equal(found.flatten(1), torch.cat([each.flatten(1) for each in expected], 1))
    (flip,) = find_views(("flip",))
    grid = open_store(tmp_path, joint, images[:1], view=flip).gather(["0.png"])
    for part, encoder in zip(joint.parts, light(), strict=True):
        own = build_store(tmp_path, encoder, images[:1], view=flip).gather(["0.png"])
        assert torch.equal(grid[:, part.first : part.end, : part.channels], own)
        plain = build_store(tmp_path, encoder, images[:1]).gather(["0.png"])
        assert not torch.equal(own, plain)


def test_an_image_that_cannot_be_read_is_left_out_of_all_stores_if_that_is_allowed(
    tmp_path: Path, images: list[tuple[str, Path]]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    same = ("again.png", images[0][1])
    given = [*images[:2], ("broken.png", broken), same]
    store = open_store(tmp_path, JointEncoder(light()), given, skip_bad=True)
    assert "broken.png" not in store
    assert ["0.png" in store, "again.png" in store] == [True, True]
    for words in ("broken.png", "again.png is the same picture as 0.png"):
        assert [words in note for note in store.notes].count(True) == 1
    with pytest.raises(CaptioningError, match=r"broken\.png"):
        open_store(tmp_path, JointEncoder(light()), given)


def test_grids_are_read_from_memory_only_if_all_are_in_it(
    tmp_path: Path, images: list[tuple[str, Path]]
) -> None:
    store, device = open_store(tmp_path, JointEncoder(light()), images[:3]), torch.device("cpu")
    assert isinstance(store, JointStore)
    expected = store.gather(["2.png", "0.png"])
    store.stores[0].load_resident(device)
    assert not store.is_resident(device)
    store.load_resident(device)
    assert store.is_resident(device)
    for each in store.stores:  # which are not opened any more
        (each.folder / "grids.bin").write_bytes(b"")
    assert torch.equal(store.gather(["2.png", "0.png"]), expected)


def test_an_image_is_there_if_all_encoders_have_it(
    tmp_path: Path, images: list[tuple[str, Path]]
) -> None:
    members = light()
    stores = [build_store(tmp_path, each, images[:n]) for n, each in enumerate(members, 1)]
    store = JointStore(stores, JointEncoder(members))
    assert "0.png" in store
    assert "1.png" not in store


def test_other_members_or_another_order_are_another_encoder_and_none_of_them_is_trained() -> None:
    fine, coarse, changed = (
        tiny.Encoder(image_size=64),
        *(tiny.Encoder(trainable=True) for _ in "ab"),
    )
    with torch.no_grad():
        next(p for p in changed.parameters() if p.requires_grad).add_(1)
    joints = [JointEncoder(each) for each in ([fine, coarse], [fine, changed], [changed, fine])]
    assert len({joint.fingerprint for joint in joints}) == 3
    assert len({store_folder(Path(), joint) for joint in joints}) == 3
    assert not any(parameter.requires_grad for parameter in coarse.parameters())


def test_encoders_that_see_different_parts_of_a_picture_are_not_joined() -> None:
    members = [VGG16(weights="random", image_size=32, resize=each) for each in ("squash", "crop")]
    with pytest.raises(CaptioningError, match=r"encoder\.resize must be the same"):
        JointEncoder(members)
