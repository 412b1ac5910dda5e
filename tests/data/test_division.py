"""Splits that are drawn for data that has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from captioning.data.division import divide
from captioning.data.readers.base import RawCorpus
from captioning.data.splits import SPLITS, bundled_lists, captions_digest, flickr8k_images
from captioning.support.errors import CaptioningError

ROOT = Path("photographs")


def raw(count: int, **splits: list[str]) -> RawCorpus:
    names = [f"{n}.jpg" for n in range(count)]
    files = {name: ROOT / name for name in names}
    return RawCorpus({name: ["A dog"] for name in names}, splits, files=files)  # type: ignore[arg-type]


def test_data_without_splits_is_divided_by_a_seed_and_that_is_said() -> None:
    first, again, other = (raw(200) for _ in range(3))
    for data, seed in ((first, 0), (again, 0), (other, 1)):
        divide(data, "own", ROOT, seed)
        assert {split: len(data.splits[split]) for split in SPLITS} == {
            "train": 160, "dev": 20, "test": 20
        }  # fmt: skip
        assert sorted(i for of in data.splits.values() for i in of) == sorted(data.captions)
        assert "data.split_seed" in data.warnings[0]
        assert "160 for train, 20 for dev, 20 for test" in data.warnings[0]
        assert "A split of 20 images is small" in data.warnings[1]
    assert first.splits == again.splits != other.splits


def test_images_keep_their_split_when_others_are_added() -> None:
    few, more = raw(200), raw(220)
    divide(few, "own", ROOT, 0)
    divide(more, "own", ROOT, 0)
    before, after = (
        {image: split for split, of in data.splits.items() for image in of} for data in (few, more)
    )
    assert sum(before[image] != after[image] for image in before) <= 12


def test_only_what_is_missing_is_drawn() -> None:
    data = raw(40, train=[f"{n}.jpg" for n in range(30)], test=["30.jpg", "31.jpg"])
    divide(data, "own", ROOT, 0)
    assert data.splits["test"] == ["30.jpg", "31.jpg"]
    assert len(data.splits["train"]) == 27
    assert len(data.splits["dev"]) == 3
    assert "no dev split" in data.warnings[0]

    one = raw(10, test=[f"{n}.jpg" for n in range(10)])  # as cards with one split have it
    divide(one, "own", ROOT, 0)
    assert [len(one.splits[split]) for split in SPLITS] == [8, 1, 1]

    whole = raw(3, train=["0.jpg"], dev=["1.jpg"], test=["2.jpg"])
    divide(whole, "own", ROOT, 0)
    assert not whole.warnings


def test_no_image_without_a_file_is_drawn() -> None:
    data = raw(10)
    data.files = {name: data.files[name] for name in ("3.jpg", "7.jpg", "8.jpg")}
    divide(data, "own", ROOT, 0)
    assert {*data.splits["dev"], *data.splits["test"]} < data.files.keys()


def test_splits_of_published_data_sets_are_not_drawn() -> None:
    with pytest.raises(CaptioningError, match=r"photographs: it names no splits.*use data=own"):
        divide(raw(40), "flickr30k", ROOT, 0)
    with pytest.raises(CaptioningError, match="2 images with captions are too few"):
        divide(raw(2), "own", ROOT, 0)


def test_flickr8k_is_known_by_its_names(tmp_path: Path) -> None:
    official = bundled_lists().images
    names = [image for split in SPLITS for image in official[split][:5]]
    data = RawCorpus({name: ["A dog"] for name in names})
    divide(data, "own", ROOT, 0)
    assert data.splits == official
    assert data.splits_are_bundled


def test_a_digest_names_each_image_of_flickr8k(flickr8k_mini: Path) -> None:
    assert len(flickr8k_images()) == 8000
    captions: dict[str, list[str]] = {}
    for line in (flickr8k_mini / "Flickr8k_text" / "Flickr8k.token.txt").read_text().splitlines():
        image, _, caption = line.partition("\t")
        captions.setdefault(image.partition("#")[0], []).append(caption)
    for image, texts in captions.items():
        assert flickr8k_images()[captions_digest(texts[::-1])] == image
