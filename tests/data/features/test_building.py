"""Building a feature store, over a network of one convolution."""

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_store import OPTIONS, Tiny, builder, contents, make_images

from captioning.data.features.building import build_store
from captioning.data.features.digests import image_digests
from captioning.data.images import load_rgb
from captioning.support.errors import CaptioningError


def test_a_second_build_finds_everything(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    first = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    before = contents(first)
    Tiny.encoded.clear()
    # Another object, other names, other order: the content counts.
    others = [(f"other {name}", path) for name, path in reversed(images)]
    again = build_store(
        tmp_path / "stores", Tiny(weights="random", image_size=16), others, **OPTIONS
    )
    assert Tiny.encoded == []
    assert contents(again) == before
    np.testing.assert_array_equal(again.grid("other 2.png"), first.grid("2.png"))


def test_a_complete_store_opens_without_a_write(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    store = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    (store.folder / "lock").unlink()
    build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    assert not (store.folder / "lock").exists()


def test_only_a_changed_or_new_image_is_computed(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    before = build_store(tmp_path / "stores", tiny, images, **OPTIONS).gather(["1.png"])
    Image.new("RGB", (20, 20), "blue").save(images[1][1])
    new = tmp_path / "new.png"
    Image.new("RGB", (20, 20), "green").save(new)
    Tiny.encoded.clear()
    store = build_store(tmp_path / "stores", tiny, [*images, ("new", new)], **OPTIONS)
    assert Tiny.encoded == [2]
    assert not store.gather(["1.png"]).equal(before)
    with torch.inference_mode():
        expected = tiny(tiny.preprocessing(load_rgb(new))[None])[0].half()
    np.testing.assert_allclose(store.grid("new"), expected, rtol=2e-3, atol=2e-3)


def test_other_weights_size_or_resizing_are_another_store(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    weights = tmp_path / "weights.pth"
    torch.save({key: value + 1 for key, value in tiny.state_dict().items()}, weights)
    encoders = [
        tiny,
        Tiny(weights="random", image_size=16, resize="crop"),
        Tiny(weights="random", image_size=24),
        Tiny(weights=str(weights), image_size=16),
    ]
    stores = [build_store(tmp_path / "stores", encoder, images, **OPTIONS) for encoder in encoders]
    assert len({store.folder for store in stores}) == 4
    assert sum(Tiny.encoded) == 4 * 5
    assert stores[2].shape == (9, 4)
    assert not stores[0].gather(["0.png"]).equal(stores[3].gather(["0.png"]))


def test_of_two_processes_one_computes_and_the_other_waits(
    tmp_path: Path,
    tiny: Tiny,
    images: list[tuple[str, Path]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with builder(tmp_path / "stores", tmp_path / "images", seconds=0.5) as process:
        store = build_store(tmp_path / "stores", tiny, images, **OPTIONS)
        assert process.wait() == 0
    assert Tiny.encoded == []
    assert "Waiting for another process" in caplog.text
    assert len(store) == 5
    assert len((store.folder / "index.txt").read_text().splitlines()) == 5


def test_one_picture_under_two_names_has_one_row(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    copy = tmp_path / "copy.png"
    shutil.copy(images[2][1], copy)
    store = build_store(tmp_path / "stores", tiny, [*images, ("copy.png", copy)], **OPTIONS)
    assert len(store) == 6
    assert sum(Tiny.encoded) == 5
    assert store.notes == ["copy.png is the same picture as 2.png."]
    np.testing.assert_array_equal(store.grid("copy.png"), store.grid("2.png"))


@pytest.mark.parametrize("broken", ["truncated", "missing"])
def test_a_bad_image_is_an_error_or_left_out_by_name(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]], broken: str
) -> None:
    path = images[3][1]
    if broken == "truncated":
        path.write_bytes(path.read_bytes()[:900])
    else:
        path.unlink()
    with pytest.raises(CaptioningError, match=r"3\.png.*skip_bad"):
        build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    store = build_store(tmp_path / "stores", tiny, images, skip_bad=True, **OPTIONS)
    assert store.ids == ["0.png", "1.png", "2.png", "4.png"]
    assert "3.png" not in store
    (note,) = store.notes
    assert note.startswith("3.png is left out: ")
    assert sum(Tiny.encoded) == 4  # none of it twice
    np.testing.assert_array_equal(
        store.grid("4.png"),
        build_store(tmp_path / "other", tiny, images[4:], **OPTIONS).grid("4.png"),
    )


def test_when_no_image_can_be_read_it_says_so(tmp_path: Path, tiny: Tiny) -> None:
    nowhere = [("a", tmp_path / "a.jpg")]
    with pytest.raises(CaptioningError, match=r"Not one of 1 images.*a\.jpg"):
        build_store(tmp_path / "stores", tiny, nowhere, skip_bad=True, **OPTIONS)
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(CaptioningError, match=r"Not one of 1 images.*a\.jpg"):
        build_store(tmp_path / "stores", tiny, nowhere, skip_bad=True, **OPTIONS)


def test_an_id_given_twice_is_an_error(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    with pytest.raises(CaptioningError, match="twice"):
        build_store(tmp_path / "stores", tiny, [*images, images[0]], **OPTIONS)


def test_grids_beyond_half_precision_are_an_error(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    weights = tmp_path / "huge.pth"
    torch.save({key: value * 1e6 for key, value in tiny.state_dict().items()}, weights)
    with pytest.raises(CaptioningError, match="half precision"):
        build_store(
            tmp_path / "stores", Tiny(weights=str(weights), image_size=16), images, **OPTIONS
        )


@pytest.mark.parametrize(
    ("option", "words"), [({"precision": "fp8"}, "fp8"), ({"device": "abacus"}, "abacus")]
)
def test_unknown_options_are_named(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]], option: dict[str, str], words: str
) -> None:
    with pytest.raises(CaptioningError, match=words):
        build_store(tmp_path / "stores", tiny, images, **{**OPTIONS, **option})


def test_a_full_disk_is_told_with_the_first_batch(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=90))
    with pytest.raises(CaptioningError, match=r"needs some 0\.0 GB more"):
        build_store(tmp_path / "stores", tiny, images, **OPTIONS)
    assert Tiny.encoded == [2]


def test_the_arithmetic_is_noted_and_makes_little_difference(tmp_path: Path) -> None:
    from captioning.models.encoders.vgg16 import VGG16  # slow; the builder processes do without

    images = make_images(tmp_path / "images", count=3)
    encoder = VGG16(weights="random", image_size=64)
    grids = {}
    for precision in ("fp32", "bf16"):
        options = {**OPTIONS, "precision": precision}
        store = build_store(tmp_path / precision, encoder, images, **options)
        assert json.loads((store.folder / "meta.json").read_text())["precisions"] == [precision]
        grids[precision] = store.gather(store.ids).float().flatten(1)
    assert not grids["fp32"].equal(grids["bf16"])
    assert torch.cosine_similarity(grids["fp32"], grids["bf16"]).min() > 0.999

    more = [*images, *make_images(tmp_path / "more", count=4)[3:]]
    store = build_store(tmp_path / "fp32", encoder, more, **{**OPTIONS, "precision": "bf16"})
    assert json.loads((store.folder / "meta.json").read_text())["precisions"] == ["fp32", "bf16"]
    assert store.gather(["0.png"]).float().flatten(1).equal(grids["fp32"][:1])


def test_the_encoder_is_left_as_it_was(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    before = {key: value.clone() for key, value in tiny.state_dict().items()}
    build_store(tmp_path / "stores", tiny, images, **{**OPTIONS, "precision": "bf16"})
    for key, value in tiny.state_dict().items():
        assert value.dtype == torch.float32
        assert value.equal(before[key])


def test_a_file_changed_behind_its_time_stamp_is_no_wrong_row(
    tmp_path: Path, tiny: Tiny, images: list[tuple[str, Path]]
) -> None:
    path = images[0][1]
    os.utime(path, ns=(10**18, 10**18))
    image_digests([path], tmp_path / "stores" / "digests.json")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(10**18, 10**18))
    with pytest.raises(CaptioningError, match=r"0\.png was changed"):
        build_store(tmp_path / "stores", tiny, images, **OPTIONS)
