"""Views against torchvision's flips and crops, and maps against maps that are painted as pixels."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import tiny
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import center_crop, five_crop, hflip, resize

from captioning.captioner import Captioner
from captioning.data.batch import Batch
from captioning.data.datamodule import CaptionDataModule
from captioning.data.features import building
from captioning.data.features.building import build_store
from captioning.data.features.meta import store_folder
from captioning.data.images import load_rgb
from captioning.data.views import VIEWS, find_views
from captioning.models.encoders.base import Preprocessing
from captioning.models.encoders.vgg16 import VGG16
from captioning.support.errors import CaptioningError

pytestmark = [pytest.mark.filterwarnings(message) for message in tiny.QUIET]

BOTH = ["original", "flip"]


def smooth_picture(width: int, height: int) -> Image.Image:
    """A few large waves, whose pixels hardly depend on the resampling."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(9 * x + 4 * y), np.cos(5 * x - 7 * y), np.sin(3 * x * y + 6 * x)]
    return Image.fromarray(np.uint8(127 + 120 * np.stack(waves, -1)))


# Names


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["original", "flop"], ["no view 'flop'; did you mean flip?"]),
        (["crop_topleft"], ["did you mean crop_top_left"]),
        (["upside"], ["no view 'upside'; choose among original, flip,", "crop_center", "box_LEFT"]),
        (["box_0_0_1"], ["no view 'box_0_0_1'"]),
        (["box_.5_0_.5_1"], ["box_.5_0_.5_1 is no part of the picture"]),
        (["box_0_0_2_1"], ["is no part of the picture"]),
        (["flip", "flip"], ["flip comes twice"]),
        ([], ["mine=[]", "at least one view"]),
    ],
)
def test_what_is_no_view_is_one_sentence(names: list[str], parts: list[str]) -> None:
    with pytest.raises(CaptioningError) as refused:
        find_views(names, "mine")
    sentence = str(refused.value)
    assert sentence.startswith(f"mine=[{','.join(names)}]: ")
    assert all(part in sentence for part in parts), sentence
    assert "\n" not in sentence


def test_a_wrong_view_is_refused_where_it_is_given() -> None:
    with pytest.raises(CaptioningError, match=r"data.train_views=\[flop\]: there is no view"):
        CaptionDataModule(train_views=["flop"])


# Pixels


@pytest.mark.parametrize("how", ["squash", "crop"])
def test_the_flip_is_torchvisions(how: str) -> None:
    preprocessing, picture = Preprocessing(size=48, resize=how), smooth_picture(90, 60)
    (flip,) = find_views(["flip"])
    assert torch.equal(flip.pixels(picture, preprocessing), hflip(preprocessing(picture)))


@pytest.mark.parametrize("how", ["squash", "crop"])
def test_the_crops_are_torchvisions(how: str) -> None:
    """Of a picture that is as large as 8/7 of what the encoder sees, no pixel is resampled."""
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    preprocessing = Preprocessing(size=56, resize=how, **plain)
    seen = smooth_picture(64, 64)
    picture = seen
    if how == "crop":  # the picture is 256/224 times as large as the part that is seen
        picture = resize(smooth_picture(512, 512), [512, 512])
        seen = center_crop(picture, [448, 448])
    names = ["crop_top_left", "crop_top_right", "crop_bottom_left", "crop_bottom_right",
             "crop_center"]  # fmt: skip
    expected = five_crop(seen, [seen.height * 7 // 8] * 2)
    for name, crop in zip(names, expected, strict=True):
        target = np.asarray(crop.resize((56, 56), Image.Resampling.BILINEAR)) / 255
        for end, flipped in (("", target), ("_flip", target[:, ::-1])):
            (view,) = find_views([name + end])
            pixels = view.pixels(picture, preprocessing).permute(1, 2, 0).numpy()
            assert np.abs(pixels - flipped).max() < (1e-6 if how == "squash" else 0.02)


# Maps


def painted(name: str, weights: np.ndarray, scale: int = 40) -> np.ndarray:
    """The map over the picture, by painting the view's cells as pixels and pasting them."""
    rows, columns = weights.shape
    (view,) = find_views([name])
    left, top, right, bottom = (round(side * scale * 8) for side in view.box)
    height, width = bottom - top, right - left
    cells = weights[
        (np.arange(height) * rows // height)[:, None], (np.arange(width) * columns // width)
    ]
    cells = cells / (height / rows) / (width / columns)
    canvas = np.zeros((8 * scale, 8 * scale))
    canvas[top:bottom, left:right] = cells[:, ::-1] if name.endswith("flip") else cells
    blocks = canvas.reshape(rows, 8 * scale // rows, columns, 8 * scale // columns)
    return blocks.sum((1, 3))


@pytest.mark.parametrize("name", [*VIEWS, "box_0_0.25_0.5_1", "box_.5_0_.75_.5_flip"])
def test_maps_are_put_back_into_their_place(name: str) -> None:
    weights = np.random.default_rng(1).random((4, 5)) ** 3
    (view,) = find_views([name])
    back = (weights.reshape(-1) @ view.placement((4, 5))).reshape(4, 5)
    np.testing.assert_allclose(back, painted(name, weights), atol=2e-3)
    assert back.sum() == pytest.approx(weights.sum(), rel=1e-6)


def test_a_corner_of_the_view_is_that_corner_of_the_picture() -> None:
    def moved(name: str, row: int, column: int) -> tuple[Any, ...]:
        weights = np.zeros((14, 14))
        weights[row, column] = 1
        (view,) = find_views([name])
        back = (weights.reshape(-1) @ view.placement((14, 14))).reshape(14, 14)
        return (*map(int, np.unravel_index(back.argmax(), back.shape)), float(back.max()))

    assert moved("original", 0, 13) == (0, 13, 1)
    assert moved("flip", 0, 13) == (0, 0, 1)
    assert moved("flip", 12, 1) == (12, 12, 1)
    assert moved("crop_bottom_right", 13, 13) == (13, 13, 1)
    assert moved("crop_bottom_right", 0, 0)[:2] == (2, 2)  # it reaches from 1.75 to 2.625
    assert moved("crop_top_left_flip", 0, 0)[:2] == (0, 11)


# Grids


@pytest.fixture(scope="module")
def encoder() -> tiny.Encoder:
    return tiny.Encoder()


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether grids are equal up to the rounding of bfloat16, in which some may be computed."""
    assert one.shape == other.shape
    cosines = torch.cosine_similarity(one.float().flatten(1), other.float().flatten(1))
    return bool((cosines > 0.9995).all())


def grid_of(encoder: tiny.Encoder, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        grid: Tensor = encoder(pixels[None])[0].half()
    return grid


def test_each_view_is_extracted_once_into_a_store_of_its_own(
    drawn_pictures: Path, encoder: tiny.Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted: list[str] = []
    extract = building.extract_grids

    def watched(*given: Any, **named: Any) -> Any:
        extracted.append(named["view"].name)
        return extract(*given, **named)

    monkeypatch.setattr(building, "extract_grids", watched)
    for names in (["original"], BOTH, ["flip", "crop_center"], BOTH):
        data = tiny.data(drawn_pictures, tmp_path)
        data.open_features(encoder, ["dev"], names)
        assert list(data.stores) == names
    assert extracted == ["original", "flip", "crop_center"]
    picture = load_rgb(drawn_pictures / "images" / "04.png")
    pixels = encoder.preprocessing(picture)
    expected = torch.stack([grid_of(encoder, pixels), grid_of(encoder, hflip(pixels))])
    found = torch.stack([data.stores[name].gather(["04.png"])[0] for name in BOTH])
    assert alike(found, expected)
    assert not alike(found[:1], found[1:])
    (flip,) = find_views(["flip"])
    meta = json.loads(
        (store_folder(tmp_path / "features", encoder, flip) / "meta.json").read_text()
    )
    assert meta["view"] == {"box": [0, 0, 1, 1], "mirrored": True}


def test_the_store_of_the_original_is_where_it_was_before_there_were_views(
    encoder: tiny.Encoder, tmp_path: Path
) -> None:
    identity = {
        "format": 2, "encoder": encoder.name, "weights": encoder.fingerprint,
        "preprocessing": asdict(encoder.preprocessing), "locations": 49, "channels": 128,
        "dtype": "float16",
    }  # fmt: skip
    digest = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    assert store_folder(tmp_path, encoder).name == f"{encoder.name}-{digest[:12]}"
    names = [store_folder(tmp_path, encoder, view).name for view in VIEWS.values()]
    assert len(set(names)) == len(VIEWS)


def test_pooled_grids_of_larger_pictures_have_views(tmp_path: Path) -> None:
    """VGG16 at twice the size, pooled 2 x 2, has grids of the same size as without both."""
    encoder, picture = VGG16(weights="random", image_size=64, pool=2), smooth_picture(90, 60)
    picture.save(tmp_path / "1.png")
    (flip,) = find_views(["flip"])
    store = build_store(
        tmp_path, encoder, [("1", tmp_path / "1.png")], view=flip, progress=False, precision="fp32"
    )
    pooled = Preprocessing(size=64)(picture)
    with torch.inference_mode():
        last = encoder.map(hflip(pooled)[None])
    expected = torch.nn.functional.avg_pool2d(last, 2).flatten(2).transpose(1, 2).half()
    torch.testing.assert_close(store.gather(["1"]), expected, atol=1e-3, rtol=1e-3)
    assert flip.placement(encoder.grid_size).shape == (4, 4) == (encoder.locations,) * 2


def test_the_flipped_grid_mirrored_back_is_close_to_the_original(tmp_path: Path) -> None:
    """A network of convolutions sees nearly the same in a mirrored picture, only elsewhere."""
    encoder, picture = tiny.Encoder(image_size=128), smooth_picture(160, 120)
    picture.save(tmp_path / "1.png")
    images, options = [("1", tmp_path / "1.png")], {"progress": False, "precision": "fp32"}
    original, flip = (
        build_store(tmp_path, encoder, images, view=view, **options).gather(["1"])[0].float()
        for view in find_views(BOTH)
    )
    rows, columns = encoder.grid_size
    back = flip.view(rows, columns, -1).flip(1).flatten(0, 1)
    assert torch.cosine_similarity(back, original, dim=1).mean() > 0.9
    assert torch.cosine_similarity(flip, original, dim=1).mean() < 0.8
    (view,) = find_views(["flip"])
    torch.testing.assert_close(torch.from_numpy(view.placement((rows, columns))).T @ flip, back)


# Batches


def batches(data: CaptionDataModule, epoch: int = 0) -> list[Batch]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(loader)


def drawn(data: CaptionDataModule, found: Sequence[Batch]) -> dict[str, str]:
    """The view of each image, by its grid."""
    views = {}
    for batch in found:
        for image, grid in zip(batch.ids, batch.images, strict=True):
            (views[image],) = [
                name
                for name, store in data.stores.items()
                if image in store and store.gather([image])[0].equal(grid)
            ]
    return views


def test_training_draws_a_view_of_each_image(
    drawn_pictures: Path, encoder: tiny.Encoder, tmp_path: Path
) -> None:
    def opened(seed: int = 5, **settings: Any) -> CaptionDataModule:
        given = {"train_views": [*BOTH, "crop_top_left"], "seed": seed} | settings
        data = tiny.data(drawn_pictures, tmp_path, **given)
        data.open_features(encoder)
        return data

    data = opened()
    first, second = (drawn(data, batches(data, epoch)) for epoch in (0, 1))
    assert {*first.values()} == {*second.values()} == {*BOTH, "crop_top_left"}
    assert first != second
    assert first == drawn(data, batches(opened()))
    assert first != drawn(data, batches(opened(seed=6)))
    plain = opened(train_views=["original"])
    assert [b.ids for b in batches(data)] == [b.ids for b in batches(plain)]
    mirrored = opened(train_views=["flip"])
    assert {*drawn(mirrored, batches(mirrored)).values()} == {"flip"}
    held = opened(resident=True)
    held.load_resident(torch.device("cpu"))
    assert all(store.is_resident(torch.device("cpu")) for store in held.stores.values())
    for one, other in zip(batches(data), batches(held), strict=True):
        assert torch.equal(one.images, other.images)
    assert all(batch.views == ("original",) for batch in batches(data))


def test_left_and_right_are_exchanged_in_the_captions_of_mirror_images(
    drawn_pictures: Path, encoder: tiny.Encoder, tmp_path: Path
) -> None:
    root = shutil.copytree(drawn_pictures, tmp_path / "data")
    content = (root / "dataset_flickr8k.json").read_text()
    for colour, words in (("red", "left of right"), ("blue", "a left box")):
        content = content.replace(f"a {colour} picture", words)
    (root / "dataset_flickr8k.json").write_text(content)
    data = tiny.data(root, tmp_path, train_views=BOTH, seed=2)
    data.open_features(encoder)
    found = batches(data)
    views, mirrored = drawn(data, found), 0
    for batch in found:
        for image, rows in zip(batch.ids, batch.tokens, strict=True):
            said = {data.vocabulary.decode(row.tolist()) for row in rows}
            expected = set(data.descriptions[image])
            if views[image] == "flip":
                swap = {"left of right": "right of left", "a left box": "a right box"}
                mirrored += bool(expected & swap.keys())
                expected = {swap.get(caption, caption) for caption in expected}
            assert said == expected
    assert mirrored
    (batch,) = data.evaluation_dataloader("test", ["flip"])
    said = {data.vocabulary.decode(row.tolist()) for row in batch.tokens[0]}
    assert said == set(data.descriptions[batch.ids[0]])
    assert "left of right" in said  # for the decoder of the view, which exchanges them itself


def test_several_views_of_an_evaluation_are_one_after_another(
    drawn_pictures: Path, encoder: tiny.Encoder, tmp_path: Path
) -> None:
    data = tiny.data(drawn_pictures, tmp_path)
    data.open_features(encoder, ["test"])
    (batch,) = data.evaluation_dataloader("test", ["flip", "original"])
    assert batch.views == ("flip", "original")
    expected = torch.cat([data.stores[name].gather(batch.ids) for name in batch.views], 1)
    assert torch.equal(batch.images, expected)
    (usual,) = data.evaluation_dataloader("test")
    assert usual.views == ("original",)
    assert torch.equal(usual.images, expected[:, 49:])


def test_a_trained_encoder_sees_pixels_of_the_same_views(
    drawn_pictures: Path, encoder: tiny.Encoder, tmp_path: Path
) -> None:
    def opened(trainable: bool) -> CaptionDataModule:
        data = tiny.data(drawn_pictures, tmp_path, seed=5, train_views=BOTH)
        data.open_features(tiny.Encoder(trainable=trainable))
        return data

    grids, pixels = opened(trainable=False), opened(trainable=True)
    assert not pixels.stores
    for one, other in zip(batches(grids), batches(pixels), strict=True):
        assert one.ids == other.ids
        with torch.no_grad():
            seen = encoder(other.images)
        assert alike(one.images, seen)
    captioner = tiny.captioner(pixels)
    (one,) = grids.evaluation_dataloader("test", BOTH)
    (other,) = pixels.evaluation_dataloader("test", BOTH)
    assert other.images.shape == (1, 2, 3, 32, 32)
    assert alike(captioner.grid(other.images), one.images)


def test_a_resumed_run_draws_the_same_views(drawn_pictures: Path, tmp_path: Path) -> None:
    """Losses and weights are those of a run that was not interrupted."""

    def fit(epochs: int, seed: int, resume: str | None = None) -> tuple[pl.Trainer, tiny.Record]:
        pl.seed_everything(seed, verbose=False)
        data = tiny.data(drawn_pictures, tmp_path / "cache", train_views=BOTH)
        model, record = tiny.captioner(data, scheduler="constant"), tiny.Record()
        trainer = tiny.trainer(tmp_path, record, max_epochs=epochs, limit_val_batches=0)
        trainer.fit(model, datamodule=data, ckpt_path=resume)
        return trainer, record

    whole, record = fit(2, seed=1)
    first, before = fit(1, seed=1)
    first.save_checkpoint(tmp_path / "last.ckpt")
    rest, after = fit(2, seed=7, resume=str(tmp_path / "last.ckpt"))
    assert before.losses + after.losses == record.losses
    for name, value in whole.lightning_module.state_dict().items():
        assert torch.equal(value, rest.lightning_module.state_dict()[name])
    assert isinstance(rest.lightning_module, Captioner)
